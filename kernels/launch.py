"""What every kernel's host code shares: layouts, number types, tile sizes, the current device.

Kernels know two layouts of a (B, C, P) tensor, P the product of its spatial axes:

- planar (contiguous): element (b, c, p) at (b C + c) P + p;
- channels last: element (b, c, p) at (b P + p) C + c.

A tile is BLOCK_C channels by BLOCK_P pixels of one image. Its size follows from the shape alone,
so the order of every sum does too.
"""

from __future__ import annotations

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


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a number type."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def index_type(*tensors: Tensor) -> tl.dtype:
    """The type of offsets inside one image: 32 bits are several times quicker, where they do."""
    largest = max(tensor[0].numel() for tensor in tensors)
    return tl.int64 if largest >= 2**31 else tl.int32


def tile(channels: int, pixels: int, channels_last: bool, elements: int) -> tuple[int, int]:
    """(BLOCK_C, BLOCK_P) of about ``elements``, long along the axis that is contiguous."""
    inner, outer = (channels, pixels) if channels_last else (pixels, channels)
    block_inner = min(triton.next_power_of_2(inner), 128)
    block_outer = min(triton.next_power_of_2(outer), max(elements // block_inner, 1))
    return (block_inner, block_outer) if channels_last else (block_outer, block_inner)
