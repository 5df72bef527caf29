"""Where a tile lies: the device side of the two layouts in :mod:`densesiam.kernels.launch`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_count(extent, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """How many blocks cover an axis. Counting them reaches past it, perhaps past 32 bits."""
    return tl.cdiv(tl.cast(extent, INDEX), BLOCK)


@triton.jit
def block_range(block, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """The indices of one block of an axis."""
    return tl.cast(block, INDEX) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def tile_of_program(
    channels, pixels, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """The image, channels and pixels of this program's tile: the only axis of the grid."""
    pixel_blocks = block_count(pixels, INDEX, BLOCK_P)
    channel_blocks = block_count(channels, INDEX, BLOCK_C)
    program = tl.program_id(0)
    channel = block_range(program // pixel_blocks % channel_blocks, INDEX, BLOCK_C)
    pixel = block_range(program % pixel_blocks, INDEX, BLOCK_P)
    return program // (pixel_blocks * channel_blocks), channel, pixel


@triton.jit
def image_start(image, channels, pixels):
    """Offset of an image's first element; 64 bits, as a batch may hold over 2^31 elements."""
    return tl.cast(image, tl.int64) * channels * pixels


@triton.jit
def tile_offsets(channel, pixel, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """Offsets inside an image of every channel (rows) at every pixel (columns)."""
    if CHANNELS_LAST:
        offsets = pixel[None, :] * channels + channel[:, None]
    else:
        offsets = channel[:, None] * pixels + pixel[None, :]
    return offsets
