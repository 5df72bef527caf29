"""Where two views of one image overlap.

A *crop* is ``(left, top, right, bottom)`` in pixels of the source image: continuous edges, not
pixel centres. A *view* is a crop resized to any size and perhaps mirrored. A *box* is
``(x1, y1, x2, y2)`` in fractions of a view's width and height. Its direction carries the flips:
``x1 > x2`` means that the box is read from right to left, ``y1 > y2`` from bottom to top.
Fractions hold for a view at any resolution, so one box serves the image and every feature map made
from it.

*Flips* are bool: (B,), whether each view is mirrored left to right, or (B, 2), whether left to
right and whether top to bottom.
"""

import torch
from torch import Tensor

_TOLERANCE = 1e-3  # of view 2's side, by which `aligned_boxes` lets view 1 reach beyond it


def overlap_boxes(
    crops1: Tensor, crops2: Tensor, flips1: Tensor, flips2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection of two crops of one image, as seen from each of the two views.

    Both boxes are read in the source image's own directions, so the same fraction of either box is
    the same point of the source, and a view mirrored left to right has a box with ``x1 > x2``.
    With ``left`` the intersection's left edge and ``l``, ``r`` those of the crop,
    ``x1 = (left - l) / (r - l)``, or one minus that in a mirrored view; likewise down the image.

    Args:
        crops1: (B, 4) crops of the first views, in source pixels; float32 or float64.
        crops2: (B, 4) crops of the second views, of the same type.
        flips1: (B,) bool, True where the first view is mirrored left to right; or (B, 2) bool, left
            to right and top to bottom.
        flips2: the same for the second view, (B,) or (B, 2) whatever flips1 is.

    Returns:
        boxes1: (B, 4) the overlap in fractions of view 1, in the crops' type.
        boxes2: (B, 4) the overlap in fractions of view 2.
        valid: (B,) bool, False where the crops share no area. Both boxes are then the point
            ``(0.5, 0.5, 0.5, 0.5)``: finite, of zero size, inside the view. Give ``valid`` to the
            losses as their weight, so that such pairs count nowhere.

    Raises:
        TypeError: crops that are not float32 or float64, or of two types; flips that are not bool.
        ValueError: a wrong shape, differing batch sizes, or tensors on different devices.
    """
    _check("overlap_boxes", crops1, crops2, flips1, flips2)
    low = torch.maximum(crops1[:, :2], crops2[:, :2])
    high = torch.minimum(crops1[:, 2:], crops2[:, 2:])
    valid = (low < high).all(dim=1)
    overlap = torch.cat([low, high], dim=1)
    boxes1 = _as_seen_from(crops1, flips1, overlap)
    boxes2 = _as_seen_from(crops2, flips2, overlap)
    meets = valid[:, None]
    return torch.where(meets, boxes1, 0.5), torch.where(meets, boxes2, 0.5), valid


def frame_boxes(crops1: Tensor, crops2: Tensor, flips1: Tensor, flips2: Tensor) -> Tensor:
    """The whole frame of view 1 as a box in view 2, read along view 1's own axes.

    ``overlap_sample(features2, frame_boxes(...), size)`` is view 2's feature map as view 1 would
    see it: crop, flip and resize in one step. The box is mirrored (``x1 > x2``) where exactly one
    of the two views is flipped, and reaches outside [0, 1] where crop 1 reaches outside crop 2. See
    `aligned_boxes` for which pairs can count then.

    Args:
        crops1: (B, 4) crops of the first views, in source pixels; float32 or float64.
        crops2: (B, 4) crops of the second views, of the same type and of non-zero area (a crop
            without area has no fractions: its boxes are not finite).
        flips1: (B,) bool, True where the first view is mirrored left to right; or (B, 2) bool, left
            to right and top to bottom.
        flips2: the same for the second view, (B,) or (B, 2) whatever flips1 is.

    Returns:
        (B, 4) boxes in fractions of view 2, in the crops' type.

    Raises:
        TypeError: crops that are not float32 or float64, or of two types; flips that are not bool.
        ValueError: a wrong shape, differing batch sizes, or tensors on different devices.
    """
    _check("frame_boxes", crops1, crops2, flips1, flips2)
    return _frame_boxes(crops1, crops2, flips1, flips2)


def aligned_boxes(
    crops1: Tensor, crops2: Tensor, flips1: Tensor, flips2: Tensor
) -> tuple[Tensor, Tensor]:
    """`frame_boxes`, and which pairs of views count: those whose view 1 lies within view 2.

    Only there has every pixel of view 1 its counterpart in view 2; beyond view 2's edge a sample
    would repeat the border. A thousandth of view 2's side is allowed for: rounding, not area.

    Args:
        crops1: (B, 4) crops of the first views, in source pixels; float32 or float64.
        crops2: (B, 4) crops of the second views, of the same type.
        flips1: (B,) bool, True where the first view is mirrored left to right; or (B, 2) bool, left
            to right and top to bottom.
        flips2: the same for the second view, (B,) or (B, 2) whatever flips1 is.

    Returns:
        boxes: (B, 4) view 1's frame in fractions of view 2, as `frame_boxes` gives it. Where a pair
            does not count it is the point ``(0.5, 0.5, 0.5, 0.5)``, so that its samples are finite.
        valid: (B,) bool, whether view 1 lies within view 2. Give it to the losses as their weight.

    Raises:
        TypeError: crops that are not float32 or float64, or of two types; flips that are not bool.
        ValueError: a wrong shape, differing batch sizes, or tensors on different devices.
    """
    _check("aligned_boxes", crops1, crops2, flips1, flips2)
    boxes = _frame_boxes(crops1, crops2, flips1, flips2)
    valid = ((boxes > -_TOLERANCE) & (boxes < 1 + _TOLERANCE)).all(dim=1)
    return torch.where(valid[:, None], boxes, 0.5), valid


def _frame_boxes(crops1: Tensor, crops2: Tensor, flips1: Tensor, flips2: Tensor) -> Tensor:
    # A mirrored view is read from the far edge to the near one.
    frames = torch.where(_edges(flips1), crops1.roll(2, dims=1), crops1)
    return _as_seen_from(crops2, flips2, frames)


def _as_seen_from(crops: Tensor, flips: Tensor, regions: Tensor) -> Tensor:
    """Regions (B, 4) of the source image, in fractions of the views that the crops give."""
    origin = crops[:, :2].repeat(1, 2)
    extent = (crops[:, 2:] - crops[:, :2]).repeat(1, 2)
    fractions = (regions - origin) / extent
    return torch.where(_edges(flips), 1 - fractions, fractions)


def _edges(flips: Tensor) -> Tensor:
    """Flips of one or two axes as (B, 4): which of x1, y1, x2, y2 are mirrored."""
    if flips.ndim == 1:
        flips = torch.stack([flips, torch.zeros_like(flips)], dim=1)
    return flips.repeat(1, 2)


def _check(function: str, crops1: Tensor, crops2: Tensor, flips1: Tensor, flips2: Tensor) -> None:
    for name, crops in (("crops1", crops1), ("crops2", crops2)):
        if crops.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{function}: {name} must be float32 or float64 source pixels, got {crops.dtype}; "
                f"convert it with {name}.float()"
            )
        if crops.ndim != 2 or crops.shape[1] != 4:
            raise ValueError(
                f"{function}: {name} must have shape (B, 4), one (left, top, right, bottom) an "
                f"image, got {tuple(crops.shape)}"
            )
    for name, flips in (("flips1", flips1), ("flips2", flips2)):
        if flips.dtype != torch.bool:
            raise TypeError(f"{function}: {name} must be bool, got {flips.dtype}")
        if flips.ndim != 1 and (flips.ndim != 2 or flips.shape[1] != 2):
            raise ValueError(
                f"{function}: {name} must have shape (B,), mirrored left to right, or (B, 2), left "
                f"to right and top to bottom; got {tuple(flips.shape)}"
            )
    if crops1.dtype != crops2.dtype:
        raise TypeError(
            f"{function}: crops1 and crops2 must be of one type, got {crops1.dtype} and "
            f"{crops2.dtype}"
        )
    for name, tensor in (("crops2", crops2), ("flips1", flips1), ("flips2", flips2)):
        if tensor.shape[0] != crops1.shape[0]:
            raise ValueError(
                f"{function}: {name} must have crops1's batch size {crops1.shape[0]}, got "
                f"{tensor.shape[0]}"
            )
        if tensor.device != crops1.device:
            raise ValueError(
                f"{function}: {name} must be on crops1's device {crops1.device}, got "
                f"{tensor.device}"
            )
