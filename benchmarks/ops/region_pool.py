"""region_pool against softmax and a batched matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import release
from benchmarks.ops.inputs import features
from benchmarks.problem import Goal, KernelNames, Make, Part, Problem, Setting, Shape
from densesiam import ops

SHAPES = (
    Shape("27 regions", 128, 80, 80, classes=27, own=True, goal=Goal(1, 1)),
    Shape("128 regions", 128, 80, 80, classes=128, own=True, goal=Goal(1, 1)),
    Shape("512 regions", 128, 40, 40, classes=512),
    Shape("C = 16", 16, 80, 80, classes=27),
    Shape("C = 2048", 2048, 14, 14, classes=27),
    Shape("small", 32, 14, 14, classes=27),
    Shape("large", 128, 160, 160, classes=27, batch=4),
    Shape("odd", 127, 79, 83, classes=29),
)
SCALED = SHAPES[0]
GPU_GOAL = Goal(5, 1.3)  # bound by products


def _eager(values: Tensor, logits: Tensor) -> Tensor:
    return torch.einsum("bnhw,bchw->bnc", logits.softmax(1), values)


def _product(values: Tensor, mask: Tensor) -> Tensor:
    return torch.bmm(mask.flatten(2), values.flatten(2).transpose(1, 2))


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads features and logits; backward reads and writes both."""
    pixels = setting.batch * shape.height * shape.width
    elements, mask = pixels * shape.channels, pixels * shape.classes
    # Multiply-adds: of half types 2048 a warp instruction of m16n8k16; float32 is the sum of two
    # numbers of tf32, which takes three instructions of m16n8k8 for 1024.
    product = elements * shape.classes * (1 / 64 if setting.itemsize == 2 else 3 / 32)
    return Problem(
        op="region_pool",
        shape=(
            f"{setting.batch}x{shape.channels}x{shape.height}x{shape.width}, "
            f"{shape.classes} regions"
        ),
        make=lambda: [
            features(setting, channels, shape.height, shape.width)
            for channels in (shape.channels, shape.classes)
        ],
        ours=ops.region_pool,
        eager=_eager,
        release=release.region_pool,
        parts={
            "bmm": Part(
                lambda values, logits: [values, logits.detach().softmax(1).requires_grad_()],
                _product,
                differentiable=(0, 1),
            )
        },
        differentiable=(0, 1),
        forward_bytes=(elements + mask) * setting.itemsize
        + setting.batch * shape.classes * shape.channels * 4,
        backward_bytes=2 * (elements + mask) * setting.itemsize,
        products=6 * elements * shape.classes,
        exponentials=2 * mask,
        # Beside the product, the softmax: a maximum, an exponential of two instructions, a sum.
        forward_instructions=product + 4 * mask,
        backward_instructions=2 * product + 4 * mask,
        operands=setting.dtype,
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    regions = 32 if shape.classes <= 32 else 128
    aligned = "true" if names.pack > 1 else "false"
    tile = f"{regions}, false, {aligned}, {aligned}, {names.element}"
    return [f"region_pool_{part}<{tile}>" for part in ("forward", "features", "logits")]


def triton_kernels(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    """Call every kernel of the Triton module, on tensors without memory."""
    for regions in (27, 128):
        features, logits = make(64, 128, 6400), make(64, regions, 6400)
        out, mass, log_sum = op.region_pool(features, logits)
        op.region_pool_backward(out, mass, features, logits, log_sum, True, True)
        yield f"{regions} regions"
