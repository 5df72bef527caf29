"""pixel_similarity against PyTorch's own losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor

from benchmarks import release
from benchmarks.ops._pixel_loss import call_pixel_loss, pixel_loss_kernels, pixel_loss_problem
from benchmarks.problem import MEMORY_BOUND, Goal, KernelNames, Make, Part, Problem, Setting, Shape
from densesiam import ops

COSINE_GOAL, GOAL = Goal(6, 1.3, 0.5, memory=0.1), Goal(3, 1.5, 0.25, memory=0.1)
SHAPES = (
    Shape("cosine 128", 128, 80, 80, variant="cosine", own=True, goal=COSINE_GOAL),
    Shape("cross-entropy 27", 27, 80, 80, variant="cross_entropy", own=True, goal=GOAL),
    Shape("cross-entropy 128", 128, 80, 80, variant="cross_entropy", own=True, goal=GOAL),
    # What training runs: a weight for each pair.
    Shape("cross-entropy 27, weighted", 27, 80, 80, variant="cross_entropy, weighted", own=True),
    Shape("cosine C = 16", 16, 80, 80, variant="cosine"),
    Shape("cosine C = 2048, K = 7", 2048, 7, 7, variant="cosine"),
    Shape("cross-entropy 512", 512, 40, 40, variant="cross_entropy"),
    Shape("small", 27, 14, 14, variant="cross_entropy"),
    Shape("large", 128, 160, 160, variant="cosine", batch=4),
    Shape("odd", 127, 79, 83, variant="cross_entropy"),
)
SCALED = SHAPES[2]
GPU_GOAL = MEMORY_BOUND


def _cosine(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z.detach()).mean()


def _cosine_formula(p: Tensor, z: Tensor) -> Tensor:
    z = z.detach()
    norms = p.square().sum(1) * z.square().sum(1)
    return -((p * z).sum(1) * norms.clamp_min(1e-16).rsqrt()).mean()


def _cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    return F.cross_entropy(p, z.detach().softmax(1))


def _weighted_cross_entropy(p: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    losses = F.cross_entropy(p, z.detach().softmax(1), reduction="none")
    weights = weight.to(losses.dtype)
    return (losses.mean((1, 2)) * weights).sum() / weights.sum()


_EAGER: dict[str, Callable[..., Tensor]] = {
    "cosine": _cosine,
    "cross_entropy": _cross_entropy,
    "cross_entropy, weighted": _weighted_cross_entropy,
}
_RELEASE = {"cosine": release.cosine, "cross_entropy": release.cross_entropy}


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads p and z; backward reads both again and writes p's gradient."""
    kind = cast(Literal["cosine", "cross_entropy"], shape.variant.split(",")[0])
    weighted = shape.variant != kind
    elements = setting.batch * shape.channels * shape.height * shape.width
    cosine = kind == "cosine"
    parts = {"cross_entropy": Part(lambda p, z, *_: [p, z.detach().softmax(1)], F.cross_entropy)}
    return pixel_loss_problem(
        "pixel_similarity",
        shape,
        setting,
        ours=lambda p, z, weight=None: ops.pixel_similarity(p, z, kind, weight),
        eager=_EAGER[shape.variant],
        formula=_cosine_formula if cosine else None,
        release=_RELEASE.get(shape.variant),
        weighted=weighted,
        parts={} if cosine else parts,
        exponentials=0 if cosine else 4 * elements,
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    return pixel_loss_kernels("Cosine" if shape.variant == "cosine" else "CrossEntropy", names)


def triton_kernels(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    """Call every kernel of the Triton module, on tensors without memory."""
    for kind, channels in (("cosine", 128), ("cross_entropy", 27)):
        call_pixel_loss(op, "pixel_similarity", make, channels, kind)
        yield kind
