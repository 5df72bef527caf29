"""Similarity of the predictor's output to the other view's projection, pixel by pixel.

The kernels are those of `pixel_loss`, with the loss of that name.
"""

from __future__ import annotations

from torch import Tensor

from .args import check_word
from .losses import KINDS
from .pixel_loss import pixel_loss, pixel_loss_backward


def pixel_similarity(
    p: Tensor, z: Tensor, kind: str, weight: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Loss and statistics, of the dispatcher's schema."""
    op = "pixel_similarity"
    check_word(op, "kind", kind, tuple(KINDS))
    return pixel_loss(op, KINDS[kind], p, z, weight, reduction)


def pixel_similarity_backward(
    grad: Tensor,
    p: Tensor,
    z: Tensor,
    kind: str,
    weight: Tensor | None,
    reduction: str,
    statistics: Tensor,
) -> Tensor:
    """Gradient to p, in p's layout."""
    op = "pixel_similarity_backward"
    check_word(op, "kind", kind, tuple(KINDS))
    return pixel_loss_backward(op, KINDS[kind], grad, p, z, weight, reduction, statistics)
