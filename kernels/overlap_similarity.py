"""Similarity of two views where they overlap: samples and loss in one kernel.

Forward keeps two numbers a sample. Backward samples again, writes the gradient to p's samples to
one buffer, and gathers p's gradient from it, as overlap_sample does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densesiam import _layout

from .addressing import block_count, block_range, image_start, tile_of_program, tile_offsets
from .args import (
    check_boxes,
    check_grad,
    check_map,
    check_size,
    check_tensor,
    check_weighted,
    check_word,
)
from .bilinear import bilinear
from .geometry import MapAndCells, box_is_finite, load_box
from .launch import (
    accumulate_type,
    coordinate_type,
    in_layout,
    index_type,
    launch,
    pixel_tile,
    tile,
)
from .losses import KINDS
from .numerics import to_storage
from .overlap_sample import overlap_sample_backward
from .pixel_loss import load_statistics, store_statistics
from .reduction import image_weight, loss_factor, loss_gradient, mean_of_sums, store_loss


def overlap_similarity(
    p: Tensor,
    z: Tensor,
    boxes_p: Tensor | None,
    boxes_z: Tensor | None,
    size: list[int],
    kind: str,
    weight: Tensor | None,
    reduction: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and statistics, of the dispatcher's schema."""
    if keep:
        raise ValueError(
            "overlap_similarity: keep must be False, only the CPU's kernel keeps gradients"
        )
    _check("overlap_similarity", p, z, boxes_p, boxes_z, size, kind, weight, reduction)
    batch, channels = p.shape[:2]
    cells = size[0] * size[1]
    dtype = _layout.accumulate_dtype(p)
    mean = reduction == "mean"
    statistics = p.new_empty([batch, 2, cells], dtype=dtype)
    loss = p.new_empty([] if mean else [batch, *size], dtype=dtype)
    if batch * cells == 0:
        return loss.zero_(), statistics
    block_c, block_p, warps = pixel_tile(p, channels, cells, elements=1024)
    programs = batch * triton.cdiv(cells, block_p)
    losses = p.new_empty([programs], dtype=dtype) if mean else loss
    views = _Views(p, z, boxes_p, boxes_z, size, weight, reduction)
    # Of 128, and of 144 in half types on sm_100, the scales of large vectors spill some.
    registers = 128 if KINDS[kind].scales is None else 160
    launch(
        _forward,
        programs,
        *views.arguments,
        losses,
        statistics,
        **KINDS[kind].sums,
        **views.constants,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=warps,
        maxnreg=255 if dtype == torch.float64 else registers,
    )
    if mean:
        mean_of_sums(losses, views.weight, batch, cells, loss)
    return loss, statistics


def overlap_similarity_backward(
    grad: Tensor,
    p: Tensor,
    z: Tensor,
    boxes_p: Tensor | None,
    boxes_z: Tensor | None,
    size: list[int],
    kind: str,
    weight: Tensor | None,
    reduction: str,
    kept: Tensor,
) -> Tensor:
    """Gradient to p, in p's layout."""
    op = "overlap_similarity_backward"
    _check(op, p, z, boxes_p, boxes_z, size, kind, weight, reduction)
    check_grad(op, grad, reduction, (p.shape[0], *size), p)
    statistics = (p.shape[0], 2, size[0] * size[1])
    check_tensor(op, "kept", kept, _layout.accumulate_dtype(p), statistics, p)
    batch, channels = p.shape[:2]
    if p.numel() == 0:
        return _layout.empty_like(p)
    channels_last = _layout.is_channels_last(p)
    samples = _layout.empty(p, [batch, channels, *size], channels_last, p.dtype)
    cells = size[0] * size[1]
    block_c, block_p = tile(channels, cells, channels_last, elements=1024)
    programs = batch * triton.cdiv(channels, block_c) * triton.cdiv(cells, block_p)
    views = _Views(p, z, boxes_p, boxes_z, size, weight, reduction)
    launch(
        _backward,
        programs,
        *views.arguments,
        grad.contiguous(),
        kept.contiguous(),
        samples,
        batch,
        GRADIENT=KINDS[kind].gradient,
        **views.constants,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return overlap_sample_backward(samples, boxes_p, list(p.shape[2:]), channels_last)


def _check(
    op: str,
    p: Tensor,
    z: Tensor,
    boxes_p: Tensor | None,
    boxes_z: Tensor | None,
    size: list[int],
    kind: str,
    weight: Tensor | None,
    reduction: str,
) -> None:
    check_map(op, "p", p)
    check_map(op, "z", z)
    if p.shape[1] == 0:
        raise ValueError(f"{op}: p must have at least one channel, got shape {tuple(p.shape)}")
    check_tensor(op, "z", z, p.dtype, (*p.shape[:2], *z.shape[2:]), p)
    check_boxes(op, "boxes_p", boxes_p, p)
    check_boxes(op, "boxes_z", boxes_z, p)
    check_size(op, size)
    check_word(op, "kind", kind, tuple(KINDS))
    check_weighted(op, weight, reduction, p)


class _Views:
    """What both kernels are told of the two views."""

    def __init__(
        self,
        p: Tensor,
        z: Tensor,
        boxes_p: Tensor | None,
        boxes_z: Tensor | None,
        size: list[int],
        weight: Tensor | None,
        reduction: str,
    ):
        p_last, z_last = _layout.is_channels_last(p), _layout.is_channels_last(z)
        self.weight = None if weight is None else weight.contiguous()
        self.arguments = (
            in_layout(p, p_last),
            in_layout(z, z_last),
            None if boxes_p is None else boxes_p.contiguous(),
            None if boxes_z is None else boxes_z.contiguous(),
            self.weight,
            MapAndCells(*p.shape[1:], *size),
            MapAndCells(*z.shape[1:], *size),
        )
        self.constants = {
            "MEAN": reduction == "mean",
            "COORDINATE": coordinate_type(p, boxes_p),
            "Z_COORDINATE": coordinate_type(z, boxes_z),
            "ACCUMULATE": accumulate_type(p),
            "INDEX": index_type(p.shape[1:], z.shape[1:], (p.shape[1], *size)),
            "CHANNELS_LAST": p_last,
            "Z_CHANNELS_LAST": z_last,
        }


@triton.jit
def _forward(
    p,  # [B, C, H, W]
    z,  # [B, C, H', W']
    boxes_p,  # [B, 4] or None
    boxes_z,  # [B, 4] or None
    weight,  # [B] or None
    shape_p,
    shape_z,
    losses,  # [programs] if MEAN, else [B, Kh, Kw]
    statistics,  # [B, 2, Kh Kw]
    START: tl.constexpr,
    ADD: tl.constexpr,
    SCALES: tl.constexpr,
    FINISH: tl.constexpr,
    MEAN: tl.constexpr,
    COORDINATE: tl.constexpr,
    Z_COORDINATE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    Z_CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: all channels of a block of samples of one image."""
    program = tl.program_id(0)
    cells = tl.cast(shape_p.rows, INDEX) * shape_p.columns
    blocks = block_count(cells, INDEX, BLOCK_P)
    b = program // blocks
    cell = block_range(program % blocks, INDEX, BLOCK_P)
    w = loss_factor(weight, b, MEAN, ACCUMULATE)
    p_scale, z_scale = None, None
    sums = _sums(
        p,
        z,
        boxes_p,
        boxes_z,
        p_scale,
        z_scale,
        w,
        b,
        cell,
        shape_p,
        shape_z,
        START,
        ADD,
        COORDINATE,
        Z_COORDINATE,
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
                boxes_p,
                boxes_z,
                p_scale,
                z_scale,
                w,
                b,
                cell,
                shape_p,
                shape_z,
                START,
                ADD,
                COORDINATE,
                Z_COORDINATE,
                ACCUMULATE,
                INDEX,
                CHANNELS_LAST,
                Z_CHANNELS_LAST,
                BLOCK_C,
                BLOCK_P,
            )
    loss, first_statistic, second_statistic = FINISH(sums, p_scale, z_scale)
    store_statistics(statistics, b, cell, cells, first_statistic, second_statistic)
    store_loss(losses, tl.where(w != 0, loss * w, 0), b, cell, cells, MEAN)


@triton.jit
def _sums(
    p,  # [B, C, H, W]
    z,  # [B, C, H', W']
    boxes_p,  # [B, 4] or None
    boxes_z,  # [B, 4] or None
    p_scale,  # [BLOCK_P] or None
    z_scale,  # [BLOCK_P] or None
    w,
    b,
    cell,  # [BLOCK_P]
    shape_p,
    shape_z,
    START: tl.constexpr,
    ADD: tl.constexpr,
    COORDINATE: tl.constexpr,
    Z_COORDINATE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    Z_CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums over all channels of a block of samples, of vectors times their scales."""
    sums = START(ACCUMULATE, BLOCK_P)
    for first in range(0, shape_p.channels, BLOCK_C):
        channel = tl.cast(first, INDEX) + tl.arange(0, BLOCK_C)
        p_tile = _samples(
            p, boxes_p, w, b, channel, cell, shape_p, COORDINATE, ACCUMULATE, CHANNELS_LAST
        )
        z_tile = _samples(
            z, boxes_z, w, b, channel, cell, shape_z, Z_COORDINATE, ACCUMULATE, Z_CHANNELS_LAST
        )
        if p_scale is not None:
            p_tile *= p_scale[None, :]
            z_tile *= z_scale[None, :]
        sums = ADD(sums, p_tile, z_tile, (channel < shape_p.channels)[:, None])
    return sums


@triton.jit
def _samples(
    features,  # [B, C, H, W]
    boxes,  # [B, 4] or None
    w,
    b,
    channel,  # [BLOCK_C]
    cell,  # [BLOCK_P]
    shape,
    COORDINATE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Samples of one view; an image of weight 0 is not read."""
    box = load_box(boxes, b, COORDINATE)
    image = features + image_start(b, shape.channels, tl.cast(shape.height, tl.int64) * shape.width)
    cells = tl.cast(shape.rows, cell.dtype) * shape.columns
    readable = tl.where(w != 0, shape.channels, 0)
    mask = (channel < readable)[:, None] & (cell < cells)[None, :]
    samples = bilinear(
        image, box, channel, cell, mask, shape, COORDINATE, ACCUMULATE, CHANNELS_LAST
    )
    return tl.where(box_is_finite(box), samples, float("nan"))


@triton.jit
def _backward(
    p,  # [B, C, H, W]
    z,  # [B, C, H', W']
    boxes_p,  # [B, 4] or None
    boxes_z,  # [B, 4] or None
    weight,  # [B] or None
    shape_p,
    shape_z,
    grad,  # [] if MEAN, else [B, Kh, Kw]
    statistics,  # [B, 2, Kh Kw]
    out,  # [B, C, Kh, Kw]
    batch,
    GRADIENT: tl.constexpr,
    MEAN: tl.constexpr,
    COORDINATE: tl.constexpr,
    Z_COORDINATE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    Z_CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: gradients to a tile of channels and samples of one image."""
    channels = shape_p.channels
    cells = tl.cast(shape_p.rows, INDEX) * shape_p.columns
    b, channel, cell = tile_of_program(channels, cells, INDEX, BLOCK_C, BLOCK_P)
    w = image_weight(weight, b, ACCUMULATE)
    factor = loss_gradient(grad, weight, b, batch, cell, cells, MEAN, ACCUMULATE)
    p_tile = _samples(
        p, boxes_p, w, b, channel, cell, shape_p, COORDINATE, ACCUMULATE, CHANNELS_LAST
    )
    z_tile = _samples(
        z, boxes_z, w, b, channel, cell, shape_z, Z_COORDINATE, ACCUMULATE, Z_CHANNELS_LAST
    )
    first, second = load_statistics(statistics, b, cell, cells)
    result = factor[None, :] * GRADIENT(p_tile, z_tile, first, second)
    result = to_storage(tl.where(w != 0, result, 0), out.dtype.element_ty)
    offsets = tile_offsets(channel, cell, channels, cells, CHANNELS_LAST)
    offsets += image_start(b, channels, cells)
    tl.store(out + offsets, result, (channel < channels)[:, None] & (cell < cells)[None, :])
