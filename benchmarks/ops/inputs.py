"""Inputs of the benchmarks, in the layout and on the device asked for."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def features(*shape: int, channels_last: bool = False) -> Tensor:
    """Normal numbers (B, C, H, W) that receive a gradient where the op gives one."""
    values = torch.randn(shape, device=DEVICE)
    if channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.requires_grad_()


def crop_boxes(batch: int) -> Tensor:
    """Square crops of side U(0.5, 1) of the map, every second one mirrored."""
    side = 0.5 + 0.5 * torch.rand(batch)
    left, top = torch.rand(batch) * (1 - side), torch.rand(batch) * (1 - side)
    boxes = torch.stack([left, top, left + side, top + side], dim=1)
    boxes[::2] = boxes[::2][:, [2, 1, 0, 3]]
    return boxes.to(DEVICE)


def cell_grid(boxes: Tensor, size: int) -> Tensor:
    """The cell centres of boxes as ``grid_sample`` wants them: (B, size, size, 2) in [-1, 1]."""
    centre = (torch.arange(size, device=boxes.device) + 0.5) / size
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    x, y = x1 + centre * (x2 - x1), y1 + centre * (y2 - y1)
    batch = boxes.shape[0]
    x = x[:, None, :].expand(batch, size, size)
    y = y[:, :, None].expand(batch, size, size)
    return 2 * torch.stack([x, y], dim=-1) - 1


def grid_sample(values: Tensor, boxes: Tensor, size: int) -> Tensor:
    """overlap_sample by PyTorch's own function."""
    grid = cell_grid(boxes, size)
    return torch.nn.functional.grid_sample(values, grid, padding_mode="border", align_corners=False)
