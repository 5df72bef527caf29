"""Bilinear samples at the cell centres of a box, and the gather that is their adjoint.

    out[b, c, i, j] = sum over y, x of share_y(i, y) share_x(j, x) features[b, c, y, x]

where cell i reads two neighbouring rows and cell j two neighbouring columns. Forward gathers by
samples. Backward gathers by pixels: each inverts the coordinate function to a conservative range of
cells, asks the forward's own function for the exact share of each, and sums in ascending order. No
atomics, so the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from densesiam import _layout

from .addressing import image_start, tile_of_program, tile_offsets
from .args import check_boxes, check_map, check_size
from .bilinear import bilinear
from .geometry import (
    MapAndCells,
    box_is_finite,
    cells_touching,
    load_box,
    tap_share,
)
from .launch import (
    accumulate_type,
    coordinate_type,
    in_layout,
    index_type,
    launch,
    tile,
)
from .numerics import to_storage


def overlap_sample(features: Tensor, boxes: Tensor, size: list[int]) -> Tensor:
    """Forward, of the dispatcher's schema."""
    check_map("overlap_sample", "features", features)
    check_boxes("overlap_sample", "boxes", boxes, features)
    check_size("overlap_sample", size)
    batch, channels, height, width = features.shape
    channels_last = _layout.is_channels_last(features)
    out = _layout.empty(features, [batch, channels, *size], channels_last, features.dtype)
    if out.numel() == 0:
        return out
    features, boxes = in_layout(features, channels_last), boxes.contiguous()
    cells = size[0] * size[1]
    block_c, block_p = tile(channels, cells, channels_last, elements=1024)
    programs = batch * triton.cdiv(channels, block_c) * triton.cdiv(cells, block_p)
    launch(
        _forward,
        programs,
        features,
        boxes,
        out,
        MapAndCells(channels, height, width, *size),
        COORDINATE=coordinate_type(features, boxes),
        ACCUMULATE=accumulate_type(features),
        INDEX=index_type(features.shape[1:], out.shape[1:]),
        CHANNELS_LAST=channels_last,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return out


def overlap_sample_backward(
    grad: Tensor, boxes: Tensor | None, size: list[int], channels_last: bool
) -> Tensor:
    """Gradient to a map of that size, in the layout asked for; no boxes: of the whole map."""
    check_map("overlap_sample_backward", "grad", grad)
    check_boxes("overlap_sample_backward", "boxes", boxes, grad)
    check_size("overlap_sample_backward", size)
    batch, channels, rows, columns = grad.shape
    out = _layout.empty(grad, [batch, channels, *size], channels_last, grad.dtype)
    if out.numel() == 0:
        return out
    grad = in_layout(grad, channels_last)
    boxes = None if boxes is None else boxes.contiguous()
    pixels = size[0] * size[1]
    block_c, block_p = tile(channels, pixels, channels_last, elements=1024)
    programs = batch * triton.cdiv(channels, block_c) * triton.cdiv(pixels, block_p)
    launch(
        _backward,
        programs,
        grad,
        boxes,
        out,
        MapAndCells(channels, *size, rows, columns),
        COORDINATE=coordinate_type(grad, boxes),
        ACCUMULATE=accumulate_type(grad),
        INDEX=index_type(grad.shape[1:], out.shape[1:]),
        CHANNELS_LAST=channels_last,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return out


@triton.jit
def _forward(
    features,  # [B, C, H, W]
    boxes,  # [B, 4]
    out,  # [B, C, Kh, Kw]
    shape,
    COORDINATE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: a tile of channels and cells of one image."""
    cells = tl.cast(shape.rows, INDEX) * shape.columns
    pixels = tl.cast(shape.height, INDEX) * shape.width
    b, channel, cell = tile_of_program(shape.channels, cells, INDEX, BLOCK_C, BLOCK_P)
    mask = (channel < shape.channels)[:, None] & (cell < cells)[None, :]
    box = load_box(boxes, b, COORDINATE)
    image = features + image_start(b, shape.channels, pixels)
    samples = bilinear(
        image, box, channel, cell, mask, shape, COORDINATE, ACCUMULATE, CHANNELS_LAST
    )
    samples = tl.where(box_is_finite(box), samples, float("nan"))
    target = tile_offsets(channel, cell, shape.channels, cells, CHANNELS_LAST)
    tl.store(
        out + image_start(b, shape.channels, cells) + target,
        to_storage(samples, out.dtype.element_ty),
        mask,
    )


@triton.jit
def _backward(
    grad,  # [B, C, Kh, Kw]
    boxes,  # [B, 4] or None
    out,  # [B, C, H, W]
    shape,
    COORDINATE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: a tile of channels and pixels of one image."""
    cells = tl.cast(shape.rows, INDEX) * shape.columns
    pixels = tl.cast(shape.height, INDEX) * shape.width
    b, channel, pixel = tile_of_program(shape.channels, pixels, INDEX, BLOCK_C, BLOCK_P)
    in_channels = (channel < shape.channels)[:, None]
    in_map = pixel < pixels
    box = load_box(boxes, b, COORDINATE)
    x1, y1, x2, y2 = box
    y = (pixel // shape.width).to(tl.int32)
    x = (pixel % shape.width).to(tl.int32)
    first_row, stop_row = cells_touching(y1, y2, y, shape.rows, shape.height, COORDINATE)
    first_column, stop_column = cells_touching(x1, x2, x, shape.columns, shape.width, COORDINATE)
    # A box that is not finite passes no gradient on.
    stop_row = tl.where(box_is_finite(box), stop_row, first_row)
    stop_row = tl.where(in_map, stop_row, first_row)

    # Every pixel walks its own range; all take as many steps as the longest.
    sums = tl.zeros([BLOCK_C, BLOCK_P], ACCUMULATE)
    source = grad + image_start(b, shape.channels, cells)
    for step_row in range(tl.max(stop_row - first_row)):
        i = first_row + step_row
        y_share = tap_share(y1, y2, i, y, shape.rows, shape.height, COORDINATE, ACCUMULATE)
        y_share = tl.where(i < stop_row, y_share, 0)
        for step_column in range(tl.max(stop_column - first_column)):
            j = first_column + step_column
            x_share = tap_share(x1, x2, j, x, shape.columns, shape.width, COORDINATE, ACCUMULATE)
            x_share = tl.where(j < stop_column, x_share, 0)
            share = y_share * x_share
            cell = i.to(INDEX) * shape.columns + j
            offsets = tile_offsets(channel, cell, shape.channels, cells, CHANNELS_LAST)
            touched = in_channels & (share != 0)[None, :]
            sums += share[None, :] * tl.load(source + offsets, touched, other=0).to(ACCUMULATE)
    target = tile_offsets(channel, pixel, shape.channels, pixels, CHANNELS_LAST)
    mask = in_channels & in_map[None, :]
    tl.store(
        out + image_start(b, shape.channels, pixels) + target,
        to_storage(sums, out.dtype.element_ty),
        mask,
    )
