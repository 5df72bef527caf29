"""Losses of pixels: each one, or their mean, and the way back from either.

The mean is summed in a fixed order, by each program and then by one program over those sums.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .addressing import image_start
from .launch import launch
from .numerics import from_storage

BLOCK = tl.constexpr(1024)

WEIGHTS = tl.constexpr(128)
"""That are read at once."""


def mean_of_sums(sums: Tensor, weight: Tensor | None, batch: int, pixels: int, out: Tensor) -> None:
    """Write the mean of all losses to the scalar ``out``; 0 where the weights sum to 0.

    Args:
        sums: (programs,) losses summed by each program. With weights each program has pixels of
            one image, each image as many programs, side by side, and an image of weight 0 sums
            of 0.
        weight: (B,) one weight an image, float or bool; None for 1.
        batch: number of images.
        pixels: pixels an image.
        out: scalar of the type of ``sums``.
    """
    launch(_mean_of_sums, 1, sums, sums.numel(), weight, batch, pixels, out)


@triton.jit
def _mean_of_sums(
    sums,  # [count]
    count,
    weight,  # [B] or None
    batch,
    pixels,
    out,  # []
):
    dtype: tl.constexpr = out.dtype.element_ty
    if weight is None:
        total, all_weights = sum_of(sums, count, dtype), tl.cast(batch, dtype)
    else:
        unit = weight_unit(weight, batch, dtype)
        lane = tl.arange(0, BLOCK)
        each = count // batch
        image, place = lane // each, lane % each  # of a sum: no division for each
        partial = tl.zeros([BLOCK], dtype)
        for start in range(0, count, BLOCK):
            some = start + lane < count
            w = from_storage(tl.load(weight + image, some, other=0), dtype)
            partial += tl.load(sums + start + lane, some, other=0) * in_units(w, unit)
            place += BLOCK % each
            image += BLOCK // each + (place >= each).to(tl.int32)
            place = tl.where(place >= each, place - each, place)
        total, all_weights = tl.sum(partial), _sum_in_units(weight, unit, batch, dtype)
    tl.store(out, total * _inverse(all_weights * pixels))


@triton.jit
def _inverse(total):
    """What a sum over all pixels is multiplied by to become a mean; 0 if no image counts."""
    return tl.where(total == 0, 0, 1 / tl.where(total == 0, 1, total))


@triton.jit
def weight_unit(weight, batch, dtype: tl.constexpr):
    """What brings the weights to the size of 1: one over a power of two near the largest.

    Products with it are exact but where they underflow. NaN where a weight is infinite.
    """
    lane = tl.arange(0, WEIGHTS)
    largest = tl.zeros([WEIGHTS], dtype)
    for start in range(0, batch, WEIGHTS):
        w = from_storage(tl.load(weight + start + lane, start + lane < batch, other=0), dtype)
        largest = tl.maximum(largest, tl.abs(w))
    magnitude = tl.max(largest)
    if dtype == tl.float64:
        exponent = magnitude.to(tl.int64, bitcast=True) >> 52
        unit = (tl.maximum(2046 - exponent, 1) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = magnitude.to(tl.int32, bitcast=True) >> 23
        unit = (tl.maximum(254 - exponent, 1) << 23).to(tl.float32, bitcast=True)
    return unit + (magnitude - magnitude)


@triton.jit
def in_units(w, unit):
    """Weights times `weight_unit`, which is all that a mean knows of them.

    Products with the weights themselves, and their sum, may be too large or too small for the type.
    What is not 0 stays so.
    """
    # As a literal it would be a float64.
    bits: tl.constexpr = tl.int64 if unit.dtype == tl.float64 else tl.int32
    least = tl.full([], 1, bits).to(unit.dtype, bitcast=True)
    scaled = tl.where(w == 0, 0, w * unit)
    return tl.where((scaled == 0) & (w != 0), least, scaled)


@triton.jit
def _sum_in_units(weight, unit, batch, dtype: tl.constexpr):
    """Sum of the weights times `weight_unit`, in an order that follows from their number."""
    lane = tl.arange(0, WEIGHTS)
    sums = tl.zeros([WEIGHTS], dtype)
    for start in range(0, batch, WEIGHTS):
        w = from_storage(tl.load(weight + start + lane, start + lane < batch, other=0), dtype)
        sums += in_units(w, unit)
    return tl.sum(sums)


@triton.jit
def sum_of(values, count, dtype: tl.constexpr):
    """Sum of a vector, in an order that follows from its length."""
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], dtype)
    for start in range(0, count, BLOCK):
        sums += tl.load(values + start + lane, start + lane < count, other=0)
    return tl.sum(sums)


@triton.jit
def image_weight(weight, b, dtype: tl.constexpr):
    """The weight of one image; 1 without weights."""
    return tl.full([], 1, dtype) if weight is None else from_storage(tl.load(weight + b), dtype)


@triton.jit
def loss_factor(weight, b, MEAN: tl.constexpr, dtype: tl.constexpr):
    """What a loss of an image is multiplied by where it is found.

    Of a mean that is 1, or 0 where the image does not count: `mean_of_sums` weighs the sums.
    """
    w = image_weight(weight, b, dtype)
    return tl.where(w != 0, 1, w) if MEAN else w


@triton.jit
def store_loss(losses, loss, b, pixel, pixels, MEAN: tl.constexpr):
    """Write each pixel's loss, (B, P), or the sum of this program's, (programs,)."""
    if MEAN:
        tl.store(losses + tl.program_id(0), tl.sum(tl.where(pixel < pixels, loss, 0)))
    else:
        tl.store(losses + image_start(b, 1, pixels) + pixel, loss, pixel < pixels)


@triton.jit
def loss_gradient(grad, weight, b, batch, pixel, pixels, MEAN: tl.constexpr, dtype: tl.constexpr):
    """Gradient to each pixel's loss before it is weighted."""
    w = image_weight(weight, b, dtype)
    if MEAN:
        total = tl.cast(batch, dtype)
        if weight is not None:
            unit = weight_unit(weight, batch, dtype)
            w = in_units(w, unit)
            total = _sum_in_units(weight, unit, batch, dtype)
        factor = w * (tl.load(grad) * _inverse(total * pixels))
        gradient = tl.broadcast_to(factor, pixel.shape)
    else:
        source = grad + image_start(b, 1, pixels) + pixel
        gradient = w * tl.load(source, pixel < pixels, other=0)
    return gradient
