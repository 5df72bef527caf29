"""confusion_matrix against bincount."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.problem import MEMORY_BOUND, Goal, KernelNames, Part, Problem, Setting, Shape
from densesiam import ops

SHAPES = (
    Shape("27 x 27", 27, 320, 320, own=True, goal=Goal(3, 1.5, memory=0.1)),
    Shape("128 x 128", 128, 320, 320),
    Shape("512 x 512", 512, 320, 320),
    Shape("small", 27, 40, 40),
    Shape("large", 27, 1024, 1024, batch=4),
    Shape("odd", 29, 317, 331),
)
SCALED = SHAPES[0]
GPU_GOAL = MEMORY_BOUND


def problem(shape: Shape, setting: Setting) -> Problem:
    """As many clusters as classes, at label size, some pixels void; all integers int64."""
    K = shape.channels
    size = (setting.batch, shape.height, shape.width)
    ignore = K + 1

    def make() -> list[Tensor]:
        label = torch.randint(K + 1, size, device=DEVICE)
        return [torch.randint(K, size, device=DEVICE), label.masked_fill(label == K, ignore)]

    def cells(prediction: Tensor, label: Tensor) -> Tensor:
        counted = label != ignore
        return K * label[counted] + prediction[counted]

    def count(cell: Tensor) -> Tensor:
        return torch.bincount(cell, minlength=K * K).view(K, K)

    def by_hand(prediction: Tensor, label: Tensor) -> Tensor:
        """Void pixels are counted too, in a cell of their own: nothing is gathered."""
        cell = torch.where(label != ignore, K * label + prediction, K * K)
        return torch.bincount(cell.flatten(), minlength=K * K + 1)[: K * K].view(K, K)

    return Problem(
        op="confusion_matrix",
        shape=f"{setting.batch}x{shape.height}x{shape.width}, {K} x {K}",
        make=make,
        ours=lambda prediction, label: ops.confusion_matrix(prediction, label, K, K, ignore),
        eager=lambda prediction, label: count(cells(prediction, label)),
        peers={"by_hand": by_hand},
        parts={
            "bincount": Part(
                lambda prediction, label: [cells(prediction, label)], count, differentiable=()
            )
        },
        differentiable=(),
        forward_bytes=(2 * setting.batch * shape.height * shape.width + K * K) * 8,
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    return ["count_pairs<true, true>"]
