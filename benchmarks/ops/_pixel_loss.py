"""What the benchmarks of all losses between the channels of two maps share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.ops.inputs import accumulator, all_pairs, features
from benchmarks.problem import KernelNames, Make, Problem, Setting, Shape


def pixel_loss_problem(
    op: str,
    shape: Shape,
    setting: Setting,
    ours: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    weighted: bool = False,
    **more: Any,
) -> Problem:
    """Forward reads p and z; backward reads both again and writes p's gradient."""
    elements = setting.batch * shape.channels * shape.height * shape.width
    extents = shape.channels, shape.height, shape.width
    pack, half = 16 // setting.itemsize, setting.itemsize == 2
    cosine = not more.get("exponentials")
    return Problem(
        op=op,
        shape=f"{setting.batch}x{shape.channels}x{shape.height}x{shape.width}",
        make=lambda: [
            *(features(setting, *extents) for _ in range(2)),
            *([all_pairs(setting)] if weighted else []),
        ],
        ours=ours,
        eager=eager,
        forward_bytes=2 * elements * setting.itemsize + 4,
        backward_bytes=3 * elements * setting.itemsize,
        # A pair of elements, loaded and converted: three products added; or two maxima, two
        # exponentials of two instructions, both sums and the product added.
        forward_instructions=elements * (2 / pack + 2 * half + (3 if cosine else 9)),
        # Stored as well: two products added; or two exponentials, a difference and a product.
        backward_instructions=elements * (3 / pack + 2.5 * half + (2 if cosine else 6)),
        mean=True,
        **more,
    )


def pixel_loss_kernels(loss: str, names: KernelNames) -> list[str]:
    """How the names of the CUDA kernels begin that compute a loss of csrc/cuda/losses.cuh."""
    kind = f"<{loss}<float>, {names.source}"
    return [f"pixel_loss_{names.layout}{kind}", f"pixel_loss_backward_{names.layout}{kind}"]


def call_pixel_loss(op: Any, name: str, make: Make, channels: int, *kind: str) -> None:
    """Call every kernel of a Triton module, on tensors without memory."""
    p, z = make(64, channels, 6400), make(64, channels, 6400)
    settings = *kind, accumulator(p, 64), "mean"
    loss, statistics = getattr(op, name)(p, z, *settings)
    getattr(op, f"{name}_backward")(loss, p, z, *settings, statistics)
