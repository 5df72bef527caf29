"""Scoring segmentations next to the ways that one would take: torchmetrics', and by hand.

All get the same logits at a quarter of the labels' size, and end in a table of pixel counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from densesiam.evaluation import ClusterMetrics

CLASSES, LABELS, VOID = 27, 320, 255

Count = Callable[[Tensor, Tensor], None]
"""Adds logits (1, K, h, w) and labels (1, H, W) to a table."""


def counters() -> dict[str, tuple[Count, Callable[[], Tensor]]]:
    """By name: what counts pixels, and their table so far, labels by predictions."""
    ours = ClusterMetrics(CLASSES, CLASSES, VOID)
    theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=VOID)
    table = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)

    def predicted(logits: Tensor, labels: Tensor) -> Tensor:
        size = labels.shape[1:]
        return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)

    def by_hand(logits: Tensor, labels: Tensor) -> None:
        known = labels != VOID
        pairs = CLASSES * labels[known] + predicted(logits, labels)[known]
        table.add_(torch.bincount(pairs, minlength=CLASSES**2).view_as(table))

    def torchmetrics(logits: Tensor, labels: Tensor) -> None:
        theirs.update(predicted(logits, labels), labels)

    return {
        "ours": (ours.update, lambda: ours.confusion),
        "torchmetrics": (torchmetrics, lambda: theirs.confmat),
        "interpolate, argmax, bincount": (by_hand, lambda: table),
    }


def make_image(seed: int) -> tuple[Tensor, Tensor]:
    """Logits, and labels four times their size of which every seventh or so is void."""
    generator = torch.Generator().manual_seed(seed)
    side = LABELS // 4
    logits = torch.randn(1, CLASSES, side, side, generator=generator)
    labels = torch.randint(CLASSES + 4, (1, LABELS, LABELS), generator=generator)
    return logits, labels.where(labels < CLASSES, VOID)


def evaluate(files: Sequence[Path]) -> dict[str, Any]:
    """Count the pixels of as many images as there are files, one at a time.

    Returns:
        By name, a function of the files and the round.
    """
    images = [make_image(i) for i in range(len(files))]

    def each(count: Count) -> Any:
        def run(paths: Sequence[Path], number: int) -> None:
            for image in images:
                count(*image)

        return run

    return {name: each(count) for name, (count, _) in counters().items()}
