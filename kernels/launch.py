"""What every kernel's host code shares: layouts, number types, tile sizes, the current device.

Kernels know two layouts of a (B, C, P) tensor, P the product of its spatial axes:

- planar (contiguous): element (b, c, p) at (b C + c) P + p;
- channels last: element (b, c, p) at (b P + p) C + c.

A tile is BLOCK_C channels by BLOCK_P pixels of one image. Its size follows from the shape alone,
so the order of every sum does too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from densesiam.ops import _layout

on_device_of = torch.cuda.device_of
"""Context manager: launches go to the tensor's device; it does nothing for a CPU tensor."""


def in_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    """The tensor itself if it already has that layout, else a copy that has."""
    if not channels_last:
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def accumulate_type(tensor: Tensor) -> tl.dtype:
    """The type to compute and sum in: float64 for float64, else float32."""
    return triton_type(_layout.accumulate_dtype(tensor))


def coordinate_type(*tensors: Tensor | None) -> tl.dtype:
    """float64 where the features or the boxes are, else float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return tl.float64 if double else tl.float32


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a number type."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def index_type(*images: Sequence[int]) -> tl.dtype:
    """The type of offsets inside one image of any of these shapes (C, *spatial).

    32 bits are several times quicker, where they do.
    """
    return tl.int64 if max(map(math.prod, images)) >= 2**31 else tl.int32


def tile(channels: int, pixels: int, channels_last: bool, elements: int) -> tuple[int, int]:
    """(BLOCK_C, BLOCK_P) of about ``elements``, long along the axis that is contiguous."""
    inner, outer = (channels, pixels) if channels_last else (pixels, channels)
    block_inner = min(triton.next_power_of_2(inner), 128)
    block_outer = min(triton.next_power_of_2(outer), max(elements // block_inner, 1))
    return (block_inner, block_outer) if channels_last else (block_outer, block_inner)


def pixel_tile(batch: int, channels: int, pixels: int) -> tuple[int, int]:
    """(BLOCK_C, BLOCK_P) for kernels that walk over all channels of a block of pixels.

    At most 4096 elements. Where there are few pixels of many channels, blocks of pixels get
    shorter, so that there are programs enough for a large GPU.
    """
    all_channels = triton.next_power_of_2(channels)
    block_p = min(triton.next_power_of_2(pixels), 128, 4096 // min(all_channels, 128))
    while (
        block_p > 8
        and block_p * all_channels > 1024
        and batch * triton.cdiv(pixels, block_p) < 1024
    ):
        block_p //= 2
    return min(all_channels, 4096 // block_p), block_p


def warps(elements: int) -> int:
    """Warps for a tile: 16 elements a thread."""
    return min(max(elements // 512, 1), 8)
