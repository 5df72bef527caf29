"""pseudo_label_loss against argmax, bincount and cross_entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.inputs import features
from benchmarks.problem import Problem
from densesiam import ops


def problems(batch: int, channels_last: bool) -> list[Problem]:
    """Own labels at 27 classes, without weights and with inverse-frequency weights."""
    return [_problem(batch, 27, False, channels_last), _problem(batch, 27, True, channels_last)]


def _plain(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.detach().argmax(1))


def _inverse(logits: Tensor) -> Tensor:
    labels = logits.detach().argmax(1)
    counts = torch.bincount(labels.flatten(), minlength=logits.shape[1]).float()
    weights = torch.where(counts > 0, labels.numel() / ((counts > 0).sum() * counts), 0)
    return F.cross_entropy(logits, labels, weights, reduction="none").mean()


def _problem(batch: int, classes: int, inverse: bool, channels_last: bool) -> Problem:
    elements = batch * classes * 80 * 80
    rebalance = "inverse" if inverse else "none"
    return Problem(
        op="pseudo_label_loss",
        shape=f"{batch}x{classes}x80x80, {rebalance}",
        make=lambda: [features(batch, classes, 80, 80, channels_last=channels_last)],
        ours=lambda logits: ops.pseudo_label_loss(logits, rebalance=rebalance),
        eager=_inverse if inverse else _plain,
        read=elements,
        written=1,
        read_backward=elements,
        written_backward=elements,
    )
