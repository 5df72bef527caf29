"""Inputs of the benchmarks, in the layout and on the device asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.problem import Setting


def features(setting: Setting, channels: int, height: int, width: int) -> Tensor:
    """Normal numbers (B, C, H, W) that receive a gradient where the op gives one.

    Their mean is 1/2: that of cosines of vectors around 0 is itself about 0, and can be as small as
    its rounding, which errors relative to it would make of any size.
    """
    values = 0.5 + torch.randn((setting.batch, channels, height, width), device=DEVICE)
    values = values.to(setting.dtype)
    if setting.channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.requires_grad_()


def crop_boxes(batch: int) -> Tensor:
    """Square crops of side U(0.5, 1) of the map, every second one mirrored."""
    side = 0.5 + 0.5 * torch.rand(batch)
    left, top = torch.rand(batch) * (1 - side), torch.rand(batch) * (1 - side)
    return _mirror_every_second(torch.stack([left, top, left + side, top + side], dim=1))


def whole_boxes(batch: int) -> Tensor:
    """The whole map, every second one mirrored: crops that need no rounding."""
    return _mirror_every_second(torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(batch, 1))


def _mirror_every_second(boxes: Tensor) -> Tensor:
    boxes[::2] = boxes[::2][:, [2, 1, 0, 3]]
    return boxes.to(DEVICE)


def cell_grid(boxes: Tensor, size: int) -> Tensor:
    """The cell centres of boxes as ``grid_sample`` wants them: (B, size, size, 2) in [-1, 1]."""
    centre = (torch.arange(size, dtype=boxes.dtype, device=boxes.device) + 0.5) / size
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    x, y = x1 + centre * (x2 - x1), y1 + centre * (y2 - y1)
    batch = boxes.shape[0]
    x = x[:, None, :].expand(batch, size, size)
    y = y[:, :, None].expand(batch, size, size)
    return 2 * torch.stack([x, y], dim=-1) - 1


def sample_grid(values: Tensor, grid: Tensor) -> Tensor:
    """PyTorch's own bilinear sampling.

    It wants grid and features in one type. Coordinates in a half type would be off by whole pixels,
    so half features go up to float32 and their samples come down again.
    """
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    samples = torch.nn.functional.grid_sample(
        values.to(dtype), grid.to(dtype), padding_mode="border", align_corners=False
    )
    return samples.to(values.dtype)


def grid_sample(values: Tensor, boxes: Tensor, size: int) -> Tensor:
    """overlap_sample by PyTorch's own function."""
    return sample_grid(values, cell_grid(boxes, size))


def accumulator(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of the type that sums have."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(shape, dtype=dtype)


def all_pairs(setting: Setting) -> Tensor:
    """The weight that training gives: (B,) bool, nearly always true."""
    return torch.ones(setting.batch, dtype=torch.bool, device=DEVICE)
