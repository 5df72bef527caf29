"""Any loss between the channels of p and z at every pixel: `losses` has those that there are.

Forward reads p and z once and keeps two numbers per pixel; backward reads both again and writes the
gradient. Images of weight 0 are not read at all.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from densesiam import _layout

from .addressing import block_count, block_range, image_start, tile_of_program, tile_offsets
from .args import check_grad, check_pair, check_tensor, check_weighted
from .launch import (
    accumulate_type,
    in_layout,
    index_type,
    launch,
    pixel_tile,
    tile,
)
from .losses import PixelLoss
from .numerics import to_storage
from .reduction import image_weight, loss_factor, loss_gradient, mean_of_sums, store_loss


def pixel_loss(
    op: str,
    loss_function: PixelLoss,
    p: Tensor,
    z: Tensor,
    weight: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Loss and statistics.

    Args:
        op: the operator, for messages.
        loss_function: which loss.
        p: (B, C, P) predictions.
        z: (B, C, P) targets of p's type.
        weight: (B,) one weight an image, float or bool; None for 1.
        reduction: "mean" or "none".

    Returns:
        The mean, (), or each pixel's loss, (B, P); and (B, 2, P) statistics.
    """
    check_pair(op, p, z)
    check_weighted(op, weight, reduction, p)
    batch, channels, pixels = p.shape
    dtype = _layout.accumulate_dtype(p)
    mean = reduction == "mean"
    statistics = p.new_empty([batch, 2, pixels], dtype=dtype)
    loss = p.new_empty([] if mean else [batch, pixels], dtype=dtype)
    if batch * pixels == 0:
        return loss.zero_(), statistics
    channels_last, z_channels_last = _layout.is_channels_last(p), _layout.is_channels_last(z)
    p, z = in_layout(p, channels_last), in_layout(z, z_channels_last)
    weight = None if weight is None else weight.contiguous()
    block_c, block_p, warps = pixel_tile(p, channels, pixels, elements=2048)
    programs = batch * triton.cdiv(pixels, block_p)
    losses = p.new_empty([programs], dtype=dtype) if mean else loss
    launch(
        _forward,
        programs,
        p,
        z,
        weight,
        losses,
        statistics,
        channels,
        pixels,
        **loss_function.sums,
        MEAN=mean,
        ACCUMULATE=accumulate_type(p),
        INDEX=index_type(p.shape[1:]),
        CHANNELS_LAST=channels_last,
        Z_CHANNELS_LAST=z_channels_last,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=warps,
    )
    if mean:
        mean_of_sums(losses, weight, batch, pixels, loss)
    return loss, statistics


def pixel_loss_backward(
    op: str,
    loss_function: PixelLoss,
    grad: Tensor,
    p: Tensor,
    z: Tensor,
    weight: Tensor | None,
    reduction: str,
    statistics: Tensor,
) -> Tensor:
    """Gradient (B, C, P) to p, in p's layout; ``grad`` is (), or (B, P), that of the loss."""
    check_pair(op, p, z)
    check_weighted(op, weight, reduction, p)
    batch, channels, pixels = p.shape
    check_grad(op, grad, reduction, (batch, pixels), p)
    kept = _layout.accumulate_dtype(p)
    check_tensor(op, "statistics", statistics, kept, (batch, 2, pixels), p)
    out = _layout.empty_like(p)
    if out.numel() == 0:
        return out
    channels_last, z_channels_last = _layout.is_channels_last(p), _layout.is_channels_last(z)
    p, z = in_layout(p, channels_last), in_layout(z, z_channels_last)
    weight = None if weight is None else weight.contiguous()
    block_c, block_p = tile(channels, pixels, channels_last, elements=2048)
    programs = batch * triton.cdiv(channels, block_c) * triton.cdiv(pixels, block_p)
    launch(
        _backward,
        programs,
        grad.contiguous(),
        p,
        z,
        weight,
        statistics.contiguous(),
        out,
        batch,
        channels,
        pixels,
        GRADIENT=loss_function.gradient,
        MEAN=reduction == "mean",
        ACCUMULATE=accumulate_type(p),
        INDEX=index_type(p.shape[1:]),
        CHANNELS_LAST=channels_last,
        Z_CHANNELS_LAST=z_channels_last,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return out


@triton.jit
def _forward(
    p,  # [B, C, P]
    z,  # [B, C, P]
    weight,  # [B] or None
    losses,  # [programs] if MEAN, else [B, P]
    statistics,  # [B, 2, P]
    channels,
    pixels,
    START: tl.constexpr,
    ADD: tl.constexpr,
    SCALES: tl.constexpr,
    FINISH: tl.constexpr,
    MEAN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    Z_CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: all channels of a block of pixels of one image."""
    program = tl.program_id(0)
    blocks = block_count(pixels, INDEX, BLOCK_P)
    b = program // blocks
    pixel = block_range(program % blocks, INDEX, BLOCK_P)
    in_map = pixel < pixels
    w = loss_factor(weight, b, MEAN, ACCUMULATE)
    start = image_start(b, channels, pixels)
    # An image of weight 0 is read as one of zeros: even NaN in it counts nowhere.
    readable = tl.where(w != 0, channels, 0)
    p_scale, z_scale = None, None
    sums = _sums(
        p,
        z,
        p_scale,
        z_scale,
        start,
        pixel,
        in_map,
        channels,
        pixels,
        readable,
        START,
        ADD,
        ACCUMULATE,
        INDEX,
        CHANNELS_LAST,
        Z_CHANNELS_LAST,
        BLOCK_C,
        BLOCK_P,
    )
    if SCALES is not None:
        p_scale, z_scale = SCALES(sums)
        if tl.min(tl.minimum(p_scale, z_scale)) < 1:  # seldom
            sums = _sums(
                p,
                z,
                p_scale,
                z_scale,
                start,
                pixel,
                in_map,
                channels,
                pixels,
                readable,
                START,
                ADD,
                ACCUMULATE,
                INDEX,
                CHANNELS_LAST,
                Z_CHANNELS_LAST,
                BLOCK_C,
                BLOCK_P,
            )
    loss, first_statistic, second_statistic = FINISH(sums, p_scale, z_scale)
    store_statistics(statistics, b, pixel, pixels, first_statistic, second_statistic)
    store_loss(losses, loss * w, b, pixel, pixels, MEAN)


@triton.jit
def _sums(
    p,  # [B, C, P]
    z,  # [B, C, P]
    p_scale,  # [BLOCK_P] or None
    z_scale,  # [BLOCK_P] or None
    start,
    pixel,  # [BLOCK_P]
    in_map,  # [BLOCK_P]
    channels,
    pixels,
    readable,
    START: tl.constexpr,
    ADD: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    Z_CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums over all channels of a block of pixels, of vectors times their scales."""
    sums = START(ACCUMULATE, BLOCK_P)
    for first in range(0, channels, BLOCK_C):
        channel = tl.cast(first, INDEX) + tl.arange(0, BLOCK_C)
        offsets = start + tile_offsets(channel, pixel, channels, pixels, CHANNELS_LAST)
        read = (channel < readable)[:, None] & in_map[None, :]
        p_tile = tl.load(p + offsets, read, other=0).to(ACCUMULATE)
        offsets = start + tile_offsets(channel, pixel, channels, pixels, Z_CHANNELS_LAST)
        z_tile = tl.load(z + offsets, read, other=0).to(ACCUMULATE)
        if p_scale is not None:
            p_tile *= p_scale[None, :]
            z_tile *= z_scale[None, :]
        sums = ADD(sums, p_tile, z_tile, (channel < channels)[:, None])
    return sums


@triton.jit
def _backward(
    grad,  # [] if MEAN, else [B, P]
    p,  # [B, C, P]
    z,  # [B, C, P]
    weight,  # [B] or None
    statistics,  # [B, 2, P]
    out,  # [B, C, P]
    batch,
    channels,
    pixels,
    GRADIENT: tl.constexpr,
    MEAN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    Z_CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: a tile of channels and pixels of one image."""
    b, channel, pixel = tile_of_program(channels, pixels, INDEX, BLOCK_C, BLOCK_P)
    in_map = pixel < pixels
    mask = (channel < channels)[:, None] & in_map[None, :]
    w = image_weight(weight, b, ACCUMULATE)
    factor = loss_gradient(grad, weight, b, batch, pixel, pixels, MEAN, ACCUMULATE)
    first, second = load_statistics(statistics, b, pixel, pixels)
    start = image_start(b, channels, pixels)
    offsets = start + tile_offsets(channel, pixel, channels, pixels, CHANNELS_LAST)
    z_offsets = start + tile_offsets(channel, pixel, channels, pixels, Z_CHANNELS_LAST)
    read = (channel < tl.where(w != 0, channels, 0))[:, None] & in_map[None, :]
    p_tile = tl.load(p + offsets, read, other=0).to(ACCUMULATE)
    z_tile = tl.load(z + z_offsets, read, other=0).to(ACCUMULATE)
    result = factor[None, :] * GRADIENT(p_tile, z_tile, first, second)
    result = tl.where(w != 0, result, 0)
    tl.store(out + offsets, to_storage(result, out.dtype.element_ty), mask)


@triton.jit
def store_statistics(statistics, b, pixel, pixels, first, second):
    """Write both statistics, (B, 2, P)."""
    target = statistics + image_start(b, 2, pixels) + pixel
    tl.store(target, first, pixel < pixels)
    tl.store(target + pixels, second, pixel < pixels)


@triton.jit
def load_statistics(statistics, b, pixel, pixels):
    """Read both statistics back."""
    source = statistics + image_start(b, 2, pixels) + pixel
    first = tl.load(source, pixel < pixels, other=0)
    return first, tl.load(source + pixels, pixel < pixels, other=0)
