"""From coarse logits to a label at every pixel: interpolation and argmax in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densesiam import _layout

from .addressing import block_count, block_range, image_start
from .argmax import add_candidates, start_greatest
from .args import check_map, check_size
from .bilinear import bilinear
from .geometry import MapAndCells, load_box
from .launch import accumulate_type, in_layout, index_type, launch, pixel_tile


def label_map(logits: Tensor, size: list[int]) -> Tensor:
    """Labels, of the dispatcher's schema."""
    check_map("label_map", "logits", logits)
    check_size("label_map", size)
    if logits.shape[1] == 0:
        raise ValueError(f"label_map: logits have no classes, got shape {tuple(logits.shape)}")
    batch, classes, height, width = logits.shape
    labels = logits.new_empty([batch, *size], dtype=torch.int64)
    if labels.numel() == 0:
        return labels
    channels_last = _layout.is_channels_last(logits)
    logits = in_layout(logits, channels_last)
    block_c, block_p, warps = pixel_tile(logits, classes, size[0] * size[1], elements=2048)
    programs = batch * triton.cdiv(size[0] * size[1], block_p)
    launch(
        _forward,
        programs,
        logits,
        labels,
        MapAndCells(classes, height, width, *size),
        ACCUMULATE=accumulate_type(logits),
        INDEX=index_type(logits.shape[1:], labels.shape[1:]),
        CHANNELS_LAST=channels_last,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=warps,
    )
    return labels


@triton.jit
def _forward(
    logits,  # [B, K, h, w]
    labels,  # [B, H, W]
    shape,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: all classes of a block of the result's pixels of one image."""
    program = tl.program_id(0)
    cells = tl.cast(shape.rows, INDEX) * shape.columns
    blocks = block_count(cells, INDEX, BLOCK_P)
    b = program // blocks
    cell = block_range(program % blocks, INDEX, BLOCK_P)
    in_map = cell < cells
    box = load_box(None, b, ACCUMULATE)
    image = logits + image_start(b, shape.channels, tl.cast(shape.height, INDEX) * shape.width)
    value, label = start_greatest(ACCUMULATE, BLOCK_P)
    for first in range(0, shape.channels, BLOCK_C):
        channel = tl.cast(first, INDEX) + tl.arange(0, BLOCK_C)
        is_class = (channel < shape.channels)[:, None]
        read = is_class & in_map[None, :]
        x = bilinear(image, box, channel, cell, read, shape, ACCUMULATE, ACCUMULATE, CHANNELS_LAST)
        value, label = add_candidates(value, label, x, channel, is_class)
    tl.store(labels + image_start(b, 1, cells) + cell, label.to(tl.int64), in_map)
