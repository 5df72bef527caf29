"""region_pool against softmax and a batched matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ops.inputs import features
from benchmarks.problem import Problem
from densesiam import ops


def problems(batch: int, channels_last: bool) -> list[Problem]:
    """128 channels into 27 and into 128 regions."""
    return [_problem(batch, 27, channels_last), _problem(batch, 128, channels_last)]


def _eager(values: Tensor, logits: Tensor) -> Tensor:
    return torch.einsum("bnhw,bchw->bnc", logits.softmax(1), values)


def _problem(batch: int, regions: int, channels_last: bool) -> Problem:
    elements, mask = batch * 128 * 80 * 80, batch * regions * 80 * 80
    return Problem(
        op="region_pool",
        shape=f"{batch}x128x80x80, {regions} regions",
        make=lambda: [
            features(batch, channels, 80, 80, channels_last=channels_last)
            for channels in (128, regions)
        ],
        ours=ops.region_pool,
        eager=_eager,
        differentiable=(0, 1),
        read=elements + mask,
        written=batch * regions * 128,
        read_backward=elements + mask,
        written_backward=elements + mask,
    )
