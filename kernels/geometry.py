"""Where the cells of a box fall on a feature map: one coordinate function for every kernel.

A box edge pair (start, end) is in fractions of the map; start > end reads it mirrored. Cell j of
``count`` has its centre at u = start + (j + 1/2) / count (end - start), pixel coordinate
u extent - 1/2, clamped to [0, extent - 1] (pixel centres lie at half-integers).

One sample must have one coordinate in every kernel, so nothing here may depend on fused
multiply-adds: :func:`densesiam.kernels.launch.launch` turns them off.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class MapAndCells(NamedTuple):
    """Extents of a feature map and of the grid of cells laid over its boxes."""

    channels: int
    height: int
    width: int
    rows: int
    columns: int


@triton.jit
def load_box(boxes, image, COORDINATE: tl.constexpr):
    """x1, y1, x2, y2 of an image's box; without boxes, the whole map."""
    if boxes is None:
        x1 = tl.full([], 0, COORDINATE)
        y1 = x1
        x2 = x1 + 1
        y2 = x2
    else:
        box = boxes + tl.cast(image, tl.int64) * 4
        x1 = tl.load(box).to(COORDINATE)
        y1 = tl.load(box + 1).to(COORDINATE)
        x2 = tl.load(box + 2).to(COORDINATE)
        y2 = tl.load(box + 3).to(COORDINATE)
    return x1, y1, x2, y2


@triton.jit
def box_is_finite(box):
    """Whether all four edges are; x - x is 0 for finite x and NaN otherwise."""
    x1, y1, x2, y2 = box
    return (x1 - x1) + (y1 - y1) + (x2 - x2) + (y2 - y2) == 0


@triton.jit
def cell_tap(start, end, cell, count, extent, COORDINATE: tl.constexpr, ACCUMULATE: tl.constexpr):
    """The two pixels that a sample reads, and the second's weight, of type ACCUMULATE.

    A pixel of weight 0 is not read, for it may hold an infinity: where a sample falls on one pixel,
    that is both, half and half.
    """
    centre = cell.to(COORDINATE) + 0.5
    if COORDINATE.is_fp32():
        fraction = tl.div_rn(centre, tl.cast(count, COORDINATE))  # plain `/` is not IEEE here
    else:
        fraction = centre / tl.cast(count, COORDINATE)
    coordinate = (start + fraction * (end - start)) * extent - 0.5
    last = tl.cast(extent, COORDINATE) - 1
    # Written so that a NaN, failing every comparison, lands on pixel 0: no stray read.
    coordinate = tl.where(coordinate > 0, tl.where(coordinate < last, coordinate, last), 0)
    first = coordinate.to(tl.int32)  # not negative: truncation is floor
    weight = (coordinate - first).to(ACCUMULATE)  # which may round it to 0 or 1
    second = tl.where(weight == 0, first, first + 1)
    first = tl.where(weight == 1, second, first)
    # The same twice: Triton 3.6 compiles the former alone for maps of one column in float64, and
    # 3.8 spills for it in float32.
    if COORDINATE.is_fp64():  # noqa: SIM108  # decided at compile time, as above
        one_pixel = (weight == 0) | (weight == 1)
    else:
        one_pixel = first == second
    return first, second, tl.where(one_pixel, 0.5, weight)


@triton.jit
def mix(first, second, weight):
    """Both, by the second's weight. A difference of infinities would be NaN."""
    return (1 - weight) * first + weight * second


@triton.jit
def tap_share(
    start, end, cell, pixel, count, extent, COORDINATE: tl.constexpr, ACCUMULATE: tl.constexpr
):
    """The share of ``pixel`` in a sample; 0 where the sample does not touch it."""
    first, second, weight = cell_tap(start, end, cell, count, extent, COORDINATE, ACCUMULATE)
    return tl.where(first == pixel, 1 - weight, 0) + tl.where(second == pixel, weight, 0)


@triton.jit
def cells_touching(start, end, pixel, count, extent, COORDINATE: tl.constexpr):
    """Begin and end of the cells that touch ``pixel``, and perhaps one more at either side.

    The inverse of the coordinate function, widened by what rounding can move: several roundings
    of u, and those of the inverse itself. `tap_share` gives the exact share of each.
    """
    epsilon = 1e-15 if COORDINATE.is_fp64() else 1e-6
    limit = tl.cast(count, COORDINATE)
    span = end - start
    slack = (tl.abs(start) + tl.abs(end) + 1) * epsilon
    low = (pixel.to(COORDINATE) - 0.5) / extent - slack
    high = (pixel.to(COORDINATE) + 1.5) / extent + slack
    # Samples beyond the border are clamped onto the border pixel.
    below = pixel == 0
    above = pixel == extent - 1
    margin = limit * epsilon + 0.125
    mirrored = span < 0
    scale = limit / tl.where(span == 0, 1, span)
    nearer = (tl.where(mirrored, high, low) - start) * scale
    farther = (tl.where(mirrored, low, high) - start) * scale
    open_begin = tl.where(mirrored, above, below)
    open_end = tl.where(mirrored, below, above)
    begin = tl.ceil(nearer - 0.5 - margin)
    stop = tl.floor(farther - 0.5 + margin) + 1
    # Comparisons that a NaN fails choose the open end: all cells, never a stray one.
    begin = tl.where((begin > 0) & ~open_begin, tl.where(begin < limit, begin, limit), 0)
    stop = tl.where((stop < limit) & ~open_end, tl.where(stop > 0, stop, 0), limit)
    # A box without size puts all of its cells on one spot.
    touches = (below | (start >= low)) & (above | (start <= high))
    begin = tl.where(span == 0, 0, begin)
    stop = tl.where(span == 0, tl.where(touches, limit, 0), stop)
    return begin.to(tl.int32), stop.to(tl.int32)
