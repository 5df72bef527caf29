"""confusion_matrix against bincount."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ops.inputs import DEVICE
from benchmarks.problem import Problem
from densesiam import ops


def problems(batch: int, channels_last: bool) -> list[Problem]:
    """27 clusters against 27 classes at label size, some pixels void."""
    if channels_last:  # integers have no channels
        return []

    def make() -> list[Tensor]:
        shape = (batch, 320, 320)
        label = torch.randint(28, shape, device=DEVICE)
        return [torch.randint(27, shape, device=DEVICE), label.masked_fill(label == 27, 255)]

    def eager(prediction: Tensor, label: Tensor) -> Tensor:
        counted = label != 255
        cell = 27 * label[counted] + prediction[counted]
        return torch.bincount(cell, minlength=27 * 27).view(27, 27)

    return [
        Problem(
            op="confusion_matrix",
            shape=f"{batch}x320x320, 27 x 27",
            make=make,
            ours=lambda prediction, label: ops.confusion_matrix(prediction, label, 27, 27, 255),
            eager=eager,
            differentiable=(),
            read=2 * batch * 320 * 320,
            written=27 * 27,
            itemsize=8,
        )
    ]
