"""Means of bilinear samples over the cells of boxes: torchvision's RoIAlign."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from densesiam.reference._numerics import compute_dtype
from densesiam.reference.overlap_sample import memory_format

_MOST_ELEMENTS = 2**26  # of the maps that are gathered for some boxes at once


def roi_align(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    r"""Mean of n x n bilinear samples in each cell of each box.

    A box edge x lies at pixel coordinate :math:`x s - o` (s: ``spatial_scale``; o: 1/2 where
    ``aligned``, else 0). Cell j of Kw is w = (x2 - x1) / Kw wide, and point i of its n lies at
    :math:`x_1 + j w + (i + 1/2) w / n`; rows likewise. A point outside [-1, W] counts as 0; the
    others are clamped to [0, W - 1]. The samples are separable, so a box is two matrices of shares,
    one for rows and one for columns: out = rows @ map @ columns^T.

    Args:
        features: (B, C, H, W). The only argument to receive a gradient.
        boxes: (R, 5), image and x1, y1, x2, y2; or for each image its boxes (L, 4). A box with a
            NaN or an infinity, or of an image that there is not, gives NaN and zero gradient.
        size: K, or (Kh, Kw): cells a box.
        spatial_scale: pixels of the map for one unit of the boxes.
        sampling_ratio: n. Where it is not positive, n is ceil(w), and ceil(h) for rows: a cell
            without width or height, or mirrored, then has no points and is 0.
        aligned: shift boxes by half a pixel, so that pixel centres lie at half-integers. Where not,
            boxes are at least a pixel wide and high.

    Returns:
        (R, C, Kh, Kw) in the features' type and memory format.
    """
    B, C, H, W = features.shape
    Kh, Kw = (size, size) if isinstance(size, int) else size
    boxes = rows_of_boxes(boxes).detach()
    dtype = compute_dtype(features)
    boxes = boxes.to(torch.promote_types(dtype, boxes.dtype))
    image = boxes[:, 0].trunc()
    valid = boxes.isfinite().all(dim=1) & (image >= 0) & (image < B)
    boxes = torch.where(valid[:, None], boxes, 0)
    image = boxes[:, 0].long()

    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (boxes[:, 1:] * spatial_scale - offset).unbind(dim=1)
    rows, row_points = _shares(y1, y2, Kh, H, sampling_ratio, aligned)
    columns, column_points = _shares(x1, x2, Kw, W, sampling_ratio, aligned)
    points = (row_points * column_points).clamp(min=1)
    rows, columns = (rows / points[:, None, None]).to(dtype), columns.to(dtype)

    maps = features.to(dtype)
    at_once = max(1, _MOST_ELEMENTS // max(1, C * H * W))
    parts = [
        _apply(r, maps[i], c)
        for r, i, c in zip(
            rows.split(at_once), image.split(at_once), columns.split(at_once), strict=True
        )
    ]
    out = torch.where(valid[:, None, None, None], torch.cat(parts), torch.nan)
    return out.to(features.dtype).contiguous(memory_format=memory_format(features))


def rows_of_boxes(boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Boxes as (R, 5), the image first. Half types are cast up, which loses nothing."""
    if not isinstance(boxes, Tensor):
        image = torch.cat([torch.full_like(each[:, :1], i) for i, each in enumerate(boxes)])
        boxes = torch.cat([image, torch.cat(list(boxes))], dim=1)
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def _shares(
    start: Tensor, end: Tensor, K: int, length: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """What each pixel of an axis counts in each cell, (R, K, length), and points a cell, (R,)."""
    extent = end - start
    if not aligned:
        extent = extent.clamp(min=1)
    cell = extent / K
    if sampling_ratio > 0:
        points = torch.full_like(cell, sampling_ratio)
        candidates = sampling_ratio
    else:
        # A box may scale to infinity, and its cells to infinity or NaN.
        points = torch.where(cell.isfinite() & (cell > 0), cell.ceil(), 0)
        # Points are half a pixel apart or more where a cell has several: no more can be on the map.
        candidates = 2 * length + 5
    index = torch.arange(K, dtype=start.dtype, device=start.device)
    first = start[:, None] + index * cell[:, None]  # (R, K)
    i = torch.arange(candidates, dtype=start.dtype, device=start.device).expand(*first.shape, -1)
    if sampling_ratio <= 0:  # begin just before the map
        spacing = torch.where(points > 0, cell / points, 1)[:, None]
        i = i + ((-1 - first) / spacing - 2).floor().clamp(min=0)[:, :, None]
    within = torch.where(points > 0, points, 1)[:, None, None]
    point = first[:, :, None] + (i + 0.5) * cell[:, None, None] / within
    counts = (i < points[:, None, None]) & (point >= -1) & (point <= length)

    point = torch.where(counts, point, 0).clamp(0, length - 1)
    low = point.floor()
    high = (low + 1).clamp(max=length - 1)
    weight = torch.where(counts, point - low, 0)
    rest = torch.where(counts, 1 - (point - low), 0)
    shares = start.new_zeros(start.shape[0], K, length)
    shares = shares.scatter_add(2, low.long(), rest).scatter_add(2, high.long(), weight)
    return shares, points


def _apply(rows: Tensor, maps: Tensor, columns: Tensor) -> Tensor:
    """Of each box and channel rows @ maps @ columns^T; pixels without a share count for nothing."""
    finite = maps.isfinite()
    sums = _product(rows, torch.where(finite, maps, 0), columns)
    # Times 0 an infinity or a NaN elsewhere on the map would be NaN, so they go apart.
    values = maps.detach()
    special = torch.cat([values.isnan(), values == torch.inf, values == -torch.inf], dim=1)
    met = _product((rows > 0).to(rows), special.to(rows), (columns > 0).to(rows)) > 0
    nan, plus, minus = met.chunk(3, dim=1)
    sums = torch.where(plus, torch.inf, sums)
    sums = torch.where(minus, -torch.inf, sums)
    return torch.where(nan | (plus & minus), torch.nan, sums)


def _product(rows: Tensor, maps: Tensor, columns: Tensor) -> Tensor:
    device = maps.device.type  # there is no autocast for meta tensors
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        return torch.einsum("rciw,rjw->rcij", torch.einsum("rih,rchw->rciw", rows, maps), columns)
