"""pixel_similarity against PyTorch's own losses."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.inputs import features
from benchmarks.problem import Problem
from densesiam import ops


def problems(batch: int, channels_last: bool) -> list[Problem]:
    """Cosine at 128 channels; cross-entropy at 27 and 128 categories."""
    return [
        _problem(batch, 128, "cosine", channels_last),
        _problem(batch, 27, "cross_entropy", channels_last),
        _problem(batch, 128, "cross_entropy", channels_last),
    ]


def _cosine(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z.detach()).mean()


def _cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    return F.cross_entropy(p, z.detach().softmax(1))


def _problem(
    batch: int, channels: int, kind: Literal["cosine", "cross_entropy"], channels_last: bool
) -> Problem:
    elements = batch * channels * 80 * 80
    return Problem(
        op="pixel_similarity",
        shape=f"{kind} {batch}x{channels}x80x80",
        make=lambda: [
            features(batch, channels, 80, 80, channels_last=channels_last) for _ in range(2)
        ],
        ours=lambda p, z: ops.pixel_similarity(p, z, kind),
        eager=_cosine if kind == "cosine" else _cross_entropy,
        read=2 * elements,
        written=1,
        read_backward=2 * elements,
        written_backward=elements,
    )
