"""The arrangement of the authors' release, written anew from its description.

Crops and flips are done image by image in a Python loop; crops are rounded to whole pixels;
softmaxes are stored whole; vectors are normalised apart, before their product; RegionSim is
computed from the first step on, with weight 0 until it starts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip_resize(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What overlap_sample does, for crops of whole pixels.

    Args:
        features: (B, C, H, W).
        boxes: (B, 4) in fractions; x1 > x2 is mirrored.
        size: side of the result.

    Returns:
        (B, C, size, size). Beyond the rounding it differs from overlap_sample along the crop's
        border, where it cannot see the neighbouring pixels.
    """
    height, width = features.shape[2:]
    views = []
    for image, (x1, y1, x2, y2) in zip(features, boxes.tolist(), strict=True):
        left, right = sorted((round(x1 * width), round(x2 * width)))
        top, bottom = round(y1 * height), round(y2 * height)
        crop = image[None, :, top : max(bottom, top + 1), left : max(right, left + 1)]
        view = F.interpolate(crop, (size, size), mode="bilinear", align_corners=False)
        views.append(view.flip(-1) if x1 > x2 else view)
    return torch.cat(views)


def cosine(p: Tensor, z: Tensor) -> Tensor:
    """Both normalised first, then multiplied."""
    return -(F.normalize(p, dim=1) * F.normalize(z.detach(), dim=1)).sum(dim=1).mean()


def cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    """Both softmaxes stored, then multiplied."""
    return -(F.softmax(z.detach(), dim=1) * F.log_softmax(p, dim=1)).sum(dim=1).mean()


def pseudo_label_loss(logits: Tensor) -> Tensor:
    """Labels from a stored softmax."""
    labels = F.softmax(logits.detach(), dim=1).argmax(dim=1)
    return F.cross_entropy(logits, labels)


def region_pool(features: Tensor, logits: Tensor) -> Tensor:
    """The mask stored, then a batched product."""
    mask = F.softmax(logits, dim=1).flatten(2)
    return torch.bmm(mask, features.flatten(2).transpose(1, 2))
