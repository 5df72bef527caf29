"""Similarity of two views where they overlap: samples and loss in one call."""

from typing import Literal

from torch import Tensor

from densesiam.reference.overlap_sample import overlap_sample, whole_map_boxes
from densesiam.reference.pixel_similarity import pixel_similarity


def overlap_similarity(
    p: Tensor,
    z: Tensor,
    boxes_p: Tensor | None,
    boxes_z: Tensor | None,
    size: int | tuple[int, int],
    kind: Literal["cosine", "cross_entropy"] = "cosine",
    weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """``pixel_similarity`` of ``overlap_sample(p, boxes_p, size)`` to the same of z.

    Args:
        p: (B, C, H, W) predictions. The only argument to receive a gradient.
        z: (B, C, H', W') targets; height and width may differ from p's.
        boxes_p: (B, 4) the overlap in fractions of p; None is the whole map.
        boxes_z: (B, 4) the overlap in fractions of z; None is the whole map.
        size: K, or (Kh, Kw): samples a box.
        kind: The loss, see :func:`pixel_similarity`.
        weight: (B,) float or bool, one weight an image; 0 where the views do not meet.
        reduction: ``"none"`` or ``"mean"``.

    Returns:
        ``"none"``: (B, Kh, Kw). ``"mean"``: a scalar. float32, or float64 for float64.
    """
    p = overlap_sample(p, whole_map_boxes(p) if boxes_p is None else boxes_p, size)
    z = overlap_sample(z.detach(), whole_map_boxes(z) if boxes_z is None else boxes_z, size)
    return pixel_similarity(p, z, kind, weight, reduction)
