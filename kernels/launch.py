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
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from densesiam import _layout

LARGEST_BLOCK = 128
"""Of pixels or channels, in any kernel."""

LARGEST_IMAGE = 2**31 - LARGEST_BLOCK
"""Elements of an image whose offsets, and those of its last block's end, fit 32 bits."""

MOST_PROGRAMS = 2**31 - 1024
"""Kernels number programs in 32 bits, and sum up a number of each in steps of 1024."""


def launch(kernel: triton.JITFunction, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run that many programs of a kernel on the device of its first argument.

    Multiplications and additions are never fused: a coordinate computed by two kernels, or by one
    kernel for two architectures, has the same bits. Registers are limited explicitly: left alone,
    the assembler spills one or two to reach a rounder number.

    Raises:
        ValueError: more programs than a GPU takes, and than kernels count in 32 bits.
    """
    if programs >= MOST_PROGRAMS:
        name = kernel.fn.__name__.strip("_")
        raise ValueError(
            f"{name}: {programs} programs are more than a GPU runs (2^31): split the batch"
        )
    double = arguments[0].dtype == torch.float64
    constants = {"maxnreg": 255 if double else 128} | constants
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants, enable_fp_fusion=False)


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

    32 bits are several times quicker, where they do: where even the end of an axis' last block has
    an index. Images themselves start at 64-bit offsets (`addressing.image_start`), so a batch may
    be of any size.
    """
    return tl.int64 if max(map(math.prod, images)) > LARGEST_IMAGE else tl.int32


def tile(channels: int, pixels: int, channels_last: bool, elements: int) -> tuple[int, int]:
    """(BLOCK_C, BLOCK_P) of about ``elements``, long along the axis that is contiguous."""
    inner, outer = (channels, pixels) if channels_last else (pixels, channels)
    block_inner = min(triton.next_power_of_2(inner), LARGEST_BLOCK)
    block_outer = min(triton.next_power_of_2(outer), max(elements // block_inner, 1))
    return (block_inner, block_outer) if channels_last else (block_outer, block_inner)


def pixel_tile(like: Tensor, channels: int, pixels: int, elements: int) -> tuple[int, int, int]:
    """(BLOCK_C, BLOCK_P, warps) for kernels that walk over all channels of a block of pixels.

    At most that many elements, or half as many of float64: more would not fit into registers
    (``python -m tools.audit``). Where there are few pixels of many channels, blocks of
    pixels get shorter, so that there are programs enough for a large GPU.
    """
    if like.dtype == torch.float64:
        elements //= 2
    all_channels = triton.next_power_of_2(channels)
    block_p = min(
        triton.next_power_of_2(pixels), LARGEST_BLOCK, elements // min(all_channels, elements // 32)
    )
    while (
        block_p > 8
        and block_p * all_channels > 1024
        and like.shape[0] * triton.cdiv(pixels, block_p) < 1024
    ):
        block_p //= 2
    block_c = min(all_channels, elements // block_p)
    return block_c, block_p, min(max(block_c * block_p // 256, 4), 8)
