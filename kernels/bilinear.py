"""Samples at the cell centres of a box, for the kernels that read them."""

from __future__ import annotations

import triton
import triton.language as tl

from .addressing import tile_offsets
from .geometry import cell_tap, mix


@triton.jit
def bilinear(
    image,
    box,
    channel,
    cell,
    mask,
    shape,
    COORDINATE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Samples of one image: every channel (rows) at every cell (columns)."""
    x1, y1, x2, y2 = box
    top, bottom, y_weight = cell_tap(
        y1, y2, cell // shape.columns, shape.rows, shape.height, COORDINATE, ACCUMULATE
    )
    left, right, x_weight = cell_tap(
        x1, x2, cell % shape.columns, shape.columns, shape.width, COORDINATE, ACCUMULATE
    )
    upper = _between(
        image, top, left, right, x_weight, channel, mask, shape, ACCUMULATE, CHANNELS_LAST
    )
    lower = _between(
        image, bottom, left, right, x_weight, channel, mask, shape, ACCUMULATE, CHANNELS_LAST
    )
    return mix(upper, lower, y_weight[None, :])


@triton.jit
def _between(
    image,
    row,
    left,
    right,
    weight,
    channel,
    mask,
    shape,
    ACCUMULATE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Linear interpolation along one row of pixels."""
    # The channels' type is as wide as offsets need.
    start = row.to(channel.dtype) * shape.width
    pixels = tl.cast(shape.height, channel.dtype) * shape.width
    offsets = tile_offsets(channel, start + left, shape.channels, pixels, CHANNELS_LAST)
    a = tl.load(image + offsets, mask, other=0).to(ACCUMULATE)
    offsets = tile_offsets(channel, start + right, shape.channels, pixels, CHANNELS_LAST)
    b = tl.load(image + offsets, mask, other=0).to(ACCUMULATE)
    return mix(a, b, weight[None, :])
