"""Losses of pixels: each one, or their mean, and the way back from either.

The mean is summed in a fixed order, by each program and then by one program over those sums.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .addressing import image_start
from .launch import launch

BLOCK = tl.constexpr(1024)


def mean_of_sums(sums: Tensor, weight: Tensor | None, batch: int, pixels: int, out: Tensor) -> None:
    """Write sum(sums) / sum(w pixels) to the scalar ``out``; 0 where the weights sum to 0.

    Args:
        sums: (programs,) weighted losses summed by each program.
        weight: (B,) one weight an image; None for 1.
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
    scale = mean_scale(weight, batch, pixels, dtype)
    tl.store(out, sum_of(sums, count, dtype) * scale)


@triton.jit
def mean_scale(weight, batch, pixels, dtype: tl.constexpr):
    """What a sum over all pixels is multiplied by to become a mean; 0 if no image counts."""
    if weight is None:
        total = tl.cast(batch, dtype) * pixels
    else:
        total = sum_of(weight, batch, dtype) * pixels
    return tl.where(total == 0, 0, 1 / tl.where(total == 0, 1, total))


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
    return tl.full([], 1, dtype) if weight is None else tl.load(weight + b).to(dtype)


@triton.jit
def store_loss(losses, loss, b, pixel, pixels, MEAN: tl.constexpr):
    """Write each pixel's loss, (B, P), or the sum of this program's, (programs,)."""
    if MEAN:
        tl.store(losses + tl.program_id(0), tl.sum(tl.where(pixel < pixels, loss, 0)))
    else:
        tl.store(losses + image_start(b, 1, pixels) + pixel, loss, pixel < pixels)


@triton.jit
def loss_gradient(grad, weight, b, batch, pixel, pixels, MEAN: tl.constexpr, dtype: tl.constexpr):
    """Gradient to each pixel's weighted loss."""
    if MEAN:
        scale = tl.load(grad) * mean_scale(weight, batch, pixels, dtype)
        gradient = tl.broadcast_to(scale, pixel.shape)
    else:
        source = grad + image_start(b, 1, pixels) + pixel
        gradient = tl.load(source, pixel < pixels, other=0)
    return gradient
