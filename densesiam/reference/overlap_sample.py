"""Bilinear samples of a box: GridSample, and crop-flip-resize of a whole feature map."""

import torch
from torch import Tensor

from densesiam.reference._numerics import compute_dtype


def overlap_sample(features: Tensor, boxes: Tensor, size: int | tuple[int, int]) -> Tensor:
    r"""Bilinear samples at the centres of a grid of cells laid over each box.

    Column j of Kw samples at :math:`u_j = x_1 + \frac{j + 1/2}{K_w} (x_2 - x_1)`, a fraction of the
    map's width, which is pixel coordinate :math:`u_j W - 1/2` (pixel centres are whole numbers),
    clamped to [0, W - 1]; rows likewise. A box with x1 > x2 is read from right to left.

    Args:
        features: (B, C, H, W). The only argument to receive a gradient.
        boxes: (B, 4), x1, y1, x2, y2 in fractions of the map; float32 or float64. They may be
            mirrored, of zero size or outside [0, 1]. A box with a NaN or an infinity gives NaN
            samples, and zero gradient to its image.
        size: K, or (Kh, Kw).

    Returns:
        (B, C, Kh, Kw) in the features' type and memory format.
    """
    B, _, H, W = features.shape
    Kh, Kw = (size, size) if isinstance(size, int) else size
    layout = memory_format(features)

    coordinate_dtype = torch.promote_types(compute_dtype(features), boxes.dtype)
    finite = boxes.isfinite().all(dim=1)
    boxes = torch.where(finite[:, None], boxes.detach().to(coordinate_dtype), 0)
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    left, right, x_weight = _neighbours(x1, x2, Kw, W, compute_dtype(features))
    top, bottom, y_weight = _neighbours(y1, y2, Kh, H, compute_dtype(features))

    # Converting the map, not the samples, lets a half type's gradient accumulate in float32 too.
    pixels = features.to(compute_dtype(features)).movedim(1, -1)  # (B, H, W, C)
    image = torch.arange(B, device=features.device).view(B, 1, 1)
    top, bottom, y_weight = (t.view(B, Kh, 1) for t in (top, bottom, y_weight))
    left, right, x_weight = (t.view(B, 1, Kw) for t in (left, right, x_weight))
    x_weight, y_weight = x_weight.unsqueeze(-1), y_weight.unsqueeze(-1)  # one for all channels
    upper = _mix(pixels[image, top, left], pixels[image, top, right], x_weight)
    lower = _mix(pixels[image, bottom, left], pixels[image, bottom, right], x_weight)
    samples = _mix(upper, lower, y_weight)  # (B, Kh, Kw, C)

    samples = torch.where(finite.view(B, 1, 1, 1), samples, torch.nan)
    return samples.movedim(-1, 1).to(features.dtype).contiguous(memory_format=layout)


def whole_map_boxes(features: Tensor) -> Tensor:
    """One box (0, 0, 1, 1) an image: (B, 4), in the type that ``features`` are computed in."""
    corner = features.new_zeros(features.shape[0], 2, dtype=compute_dtype(features))
    return torch.cat([corner, corner + 1], dim=1)


def _neighbours(
    start: Tensor, end: Tensor, K: int, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels around each of K samples from ``start`` to ``end``, and the second's weight.

    All three are (B, K), the weight of that type. A pixel of weight 0 is not read, for it may hold
    an infinity: where a sample falls on one pixel, that is both, half and half.
    """
    cell = (torch.arange(K, dtype=start.dtype, device=start.device) + 0.5) / K
    fraction = start[:, None] + cell * (end - start)[:, None]
    coordinate = (fraction * length - 0.5).clamp(0, length - 1)
    first = coordinate.floor()
    weight = (coordinate - first).to(dtype)  # which may round it to 0 or 1
    second = torch.where(weight == 0, first, first + 1)
    first = torch.where(weight == 1, second, first)
    return first.long(), second.long(), torch.where(first == second, 0.5, weight)


def _mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Both, by the second's weight. A difference of infinities would be NaN."""
    return (1 - weight) * first + weight * second


def memory_format(features: Tensor) -> torch.memory_format:
    """Channels last where the tensor is that and nothing else."""
    if features.is_contiguous() or not features.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
