"""label_map against interpolate and argmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.inputs import features
from benchmarks.problem import MEMORY_BOUND, Goal, KernelNames, Make, Part, Problem, Setting, Shape
from densesiam import ops

SHAPES = (
    Shape("evaluation", 27, 80, 80, size=320, own=True, goal=Goal(3, 1.5, memory=0.1)),
    Shape("128 classes", 128, 80, 80, size=320, batch=4),
    Shape("512 classes", 512, 20, 20, size=80),
    Shape("small", 27, 14, 14, size=56),
    Shape("large", 27, 160, 160, size=640, batch=2),
    Shape("odd", 29, 79, 83, size=317),
    Shape("shrinking", 27, 80, 80, size=33),
)
SCALED = SHAPES[0]
GPU_GOAL = MEMORY_BOUND


def problem(shape: Shape, setting: Setting) -> Problem:
    """Reads the logits, writes int64 labels."""
    batch, size = setting.batch, shape.size

    def resized(logits: Tensor) -> Tensor:
        return F.interpolate(logits, (size, size), mode="bilinear")

    return Problem(
        op="label_map",
        shape=f"{batch}x{shape.channels}x{shape.height}x{shape.width} -> {size}x{size}",
        make=lambda: [features(setting, shape.channels, shape.height, shape.width).detach()],
        ours=lambda logits: ops.label_map(logits, size),
        eager=lambda logits: resized(logits).argmax(1),
        parts={
            "interpolate": Part(lambda logits: [logits], resized, differentiable=()),
            "argmax": Part(
                lambda logits: [resized(logits)], lambda maps: maps.argmax(1), differentiable=()
            ),
        },
        differentiable=(),
        forward_bytes=batch * shape.channels * shape.height * shape.width * setting.itemsize
        + batch * size * size * 8,
        ties=1e-3,  # interpolation rounds differently: near ties may fall either way
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    return [f"label_map_{names.layout}<{names.direct}>"]


def triton_kernels(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    """Call every kernel of the Triton module, on tensors without memory."""
    op.label_map(make(64, 27, 80, 80), [320, 320])
    yield "320 x 320"
