"""Hard cross-entropy toward the network's own labels.

One pass over the logits (and the targets) gives each pixel's label, logsumexp and loss. Class
weights that depend on this call's own label counts are known only after it: then the pass keeps the
losses and counts the labels, and a second one over the losses alone weighs them. The counts stay on
the device; counting uses integer atomics, whose order changes nothing. Images of weight 0 are not
read; their pixels' label is UNCOUNTED, which counts as no class.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densesiam import _layout

from .addressing import block_count, block_range, image_start, tile_of_program, tile_offsets
from .argmax import add_candidates, start_greatest
from .args import check_grad, check_pixels, check_tensor, check_weighted, check_word
from .launch import (
    accumulate_type,
    in_layout,
    index_type,
    launch,
    pixel_tile,
    tile,
)
from .numerics import to_storage
from .reduction import (
    BLOCK,
    image_weight,
    loss_factor,
    loss_gradient,
    mean_of_sums,
    store_loss,
    sum_of,
)
from .softmax import add_exponentials, finite

UNCOUNTED = tl.constexpr(-1)


def pseudo_label_loss(
    logits: Tensor,
    targets: Tensor | None,
    rebalance: str,
    counts: Tensor | None,
    reduction: str,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, log_sum, labels and class weights, of the dispatcher's schema."""
    op = "pseudo_label_loss"
    check_pixels(op, "logits", logits)
    check_tensor(op, "targets", targets, logits.dtype, logits.shape, logits)
    check_word(op, "rebalance", rebalance, ("none", "frequency", "inverse"))
    batch, classes, pixels = logits.shape
    dtype = _layout.accumulate_dtype(logits)
    check_tensor(op, "counts", counts, dtype, (classes,), logits)
    check_weighted(op, weight, reduction, logits)
    mean = reduction == "mean"
    loss = logits.new_empty([] if mean else [batch, pixels], dtype=dtype)
    log_sum = logits.new_empty([batch, pixels], dtype=dtype)
    labels = logits.new_empty([batch, pixels], dtype=torch.int32)
    class_weights = logits.new_empty([classes], dtype=dtype)
    if batch * pixels == 0:
        return loss.zero_(), log_sum, labels, class_weights.fill_(1)
    channels_last = _layout.is_channels_last(logits)
    logits = in_layout(logits, channels_last)
    targets_last = targets is not None and _layout.is_channels_last(targets)
    targets = None if targets is None else in_layout(targets, targets_last)
    weight = None if weight is None else weight.contiguous()
    block_c, block_p, warps = pixel_tile(logits, classes, pixels, elements=2048)
    programs = batch * triton.cdiv(pixels, block_p)

    rebalanced = rebalance != "none"
    weighs_later = rebalanced and counts is None
    keeps_losses = weighs_later or not mean
    own_counts = logits.new_zeros([classes], dtype=torch.int64) if weighs_later else None
    losses = logits.new_empty([batch, pixels] if keeps_losses else [programs], dtype=dtype)
    if rebalanced and counts is not None:
        launch(
            _class_weights, 1, counts.contiguous(), class_weights, classes, rebalance == "inverse"
        )
    launch(
        _forward,
        programs,
        logits,
        targets,
        weight,
        class_weights if rebalanced and not weighs_later else None,
        None if rebalanced else class_weights,
        losses,
        log_sum,
        labels,
        own_counts,
        classes,
        pixels,
        MEAN=mean,
        KEEP=keeps_losses,
        ACCUMULATE=accumulate_type(logits),
        INDEX=index_type(logits.shape[1:]),
        CHANNELS_LAST=channels_last,
        TARGETS_CHANNELS_LAST=targets_last,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=warps,
    )
    if weighs_later:
        launch(_class_weights, 1, own_counts, class_weights, classes, rebalance == "inverse")
        # Where images are weighted, each program has pixels of one.
        images, each = (batch, pixels) if mean and weight is not None else (1, batch * pixels)
        block = min(triton.next_power_of_2(each), BLOCK.value)
        programs = images * triton.cdiv(each, block)
        sums = losses.new_empty([programs]) if mean else losses
        launch(
            _weigh, programs, losses, labels, class_weights, sums, each, MEAN=mean, BLOCK_P=block
        )
        losses = sums
    if mean:
        mean_of_sums(losses, weight, batch, pixels, loss)
    return loss if mean else losses, log_sum, labels, class_weights


def pseudo_label_loss_backward(
    grad: Tensor,
    logits: Tensor,
    reduction: str,
    weight: Tensor | None,
    log_sum: Tensor,
    labels: Tensor,
    class_weights: Tensor,
) -> Tensor:
    """Gradient to the logits, in their layout."""
    op = "pseudo_label_loss_backward"
    check_pixels(op, "logits", logits)
    check_weighted(op, weight, reduction, logits)
    batch, classes, pixels = logits.shape
    dtype = _layout.accumulate_dtype(logits)
    check_grad(op, grad, reduction, (batch, pixels), logits)
    check_tensor(op, "log_sum", log_sum, dtype, (batch, pixels), logits)
    check_tensor(op, "labels", labels, torch.int32, (batch, pixels), logits)
    check_tensor(op, "class_weights", class_weights, dtype, (classes,), logits)
    out = _layout.empty_like(logits)
    if out.numel() == 0:
        return out
    channels_last = _layout.is_channels_last(logits)
    logits = in_layout(logits, channels_last)
    block_c, block_p = tile(classes, pixels, channels_last, elements=2048)
    programs = batch * triton.cdiv(classes, block_c) * triton.cdiv(pixels, block_p)
    launch(
        _backward,
        programs,
        grad.contiguous(),
        logits,
        None if weight is None else weight.contiguous(),
        log_sum.contiguous(),
        labels.contiguous(),
        class_weights.contiguous(),
        out,
        batch,
        classes,
        pixels,
        MEAN=reduction == "mean",
        ACCUMULATE=accumulate_type(logits),
        INDEX=index_type(logits.shape[1:]),
        CHANNELS_LAST=channels_last,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return out


@triton.jit
def _forward(
    logits,  # [B, K, P]
    targets,  # [B, K, P] or None
    weight,  # [B] or None
    class_weights,  # [K] or None
    ones,  # [K] or None, to be filled
    losses,  # [B, P] if KEEP, else [programs]
    log_sum,  # [B, P]
    labels,  # [B, P]
    counts,  # [K] or None
    classes,
    pixels,
    MEAN: tl.constexpr,
    KEEP: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TARGETS_CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: all classes of a block of pixels of one image."""
    program = tl.program_id(0)
    blocks = block_count(pixels, INDEX, BLOCK_P)
    b = program // blocks
    pixel = block_range(program % blocks, INDEX, BLOCK_P)
    in_map = pixel < pixels
    start = image_start(b, classes, pixels)
    w = loss_factor(weight, b, MEAN, ACCUMULATE)
    in_counted = pixel < tl.where(w != 0, pixels, 0)
    total = tl.zeros([BLOCK_P], ACCUMULATE)
    shift = total - float("inf")
    value, label = start_greatest(ACCUMULATE, BLOCK_P)
    for first in range(0, classes, BLOCK_C):
        channel = tl.cast(first, INDEX) + tl.arange(0, BLOCK_C)
        is_class = (channel < classes)[:, None]
        offsets = start + tile_offsets(channel, pixel, classes, pixels, CHANNELS_LAST)
        read = is_class & in_counted[None, :]
        x = tl.load(logits + offsets, read, other=0).to(ACCUMULATE)
        total, shift, _ = add_exponentials(total, shift, x, is_class)
        if targets is not None:
            offsets = start + tile_offsets(channel, pixel, classes, pixels, TARGETS_CHANNELS_LAST)
            x = tl.load(targets + offsets, read, other=0).to(ACCUMULATE)
        value, label = add_candidates(value, label, x, channel, is_class)

    log_total = tl.log(total)
    pixel_offset = image_start(b, 1, pixels) + pixel
    tl.store(log_sum + pixel_offset, shift + log_total, in_map)
    tl.store(labels + pixel_offset, tl.where(w != 0, label, UNCOUNTED), in_map)
    # Read again, from the cache: the label is known only now.
    label_offset = label.to(INDEX) * (1 if CHANNELS_LAST else pixels)
    label_offset += pixel * (classes if CHANNELS_LAST else 1)
    chosen = tl.load(logits + start + label_offset, in_counted, other=0).to(ACCUMULATE)
    loss = tl.where(w != 0, w * (log_total - (chosen - finite(shift))), 0)
    if class_weights is not None:
        loss *= tl.load(class_weights + label)
    store_loss(losses, loss, b, pixel, pixels, not KEEP)
    if ones is not None:  # the first program fills it
        for first in range(0, tl.where(program == 0, classes, 0), BLOCK_C):
            channel = first + tl.arange(0, BLOCK_C)
            tl.store(ones + channel, 1, channel < classes)
    if counts is not None:
        _count(counts, label, in_counted, classes, BLOCK_C)


@triton.jit
def _count(counts, label, mask, classes, BLOCK_C: tl.constexpr):
    """Add this program's labels to the counts of the classes."""
    for first in range(0, classes, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        hits = (channel[:, None] == label[None, :]) & mask[None, :]
        number = tl.sum(hits.to(tl.int32), 1)
        tl.atomic_add(
            counts + channel, number.to(tl.int64), (channel < classes) & (number > 0), sem="relaxed"
        )


@triton.jit
def _class_weights(
    counts,  # [K]
    class_weights,  # [K]
    classes,
    INVERSE: tl.constexpr,
):
    """One program: n / N, or N / (K' n); 0 for a class of count 0."""
    lane = tl.arange(0, BLOCK)
    total = sum_of(counts, classes, tl.float64)
    present = tl.zeros([BLOCK], tl.int32)
    for start in range(0, classes, BLOCK):
        n = tl.load(counts + start + lane, start + lane < classes, other=0)
        present += (n > 0).to(tl.int32)
    present = tl.sum(present)
    for start in range(0, classes, BLOCK):
        n = tl.load(counts + start + lane, start + lane < classes, other=0).to(tl.float64)
        some = tl.where(n > 0, n, 1)
        weight = total / (present * some) if INVERSE else some / total
        weight = tl.where(n > 0, weight, 0).to(class_weights.dtype.element_ty)
        tl.store(class_weights + start + lane, weight, start + lane < classes)


@triton.jit
def _weigh(
    losses,  # [images, pixels]
    labels,  # [images, pixels]
    class_weights,  # [K]
    out,  # [programs] if MEAN, else [images, pixels]
    pixels,
    MEAN: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: a block of one image's losses times their labels' weights."""
    blocks = block_count(pixels, tl.int64, BLOCK_P)
    image = tl.program_id(0) // blocks
    pixel = block_range(tl.program_id(0) % blocks, tl.int64, BLOCK_P)
    start = image_start(image, 1, pixels)
    label = tl.load(labels + start + pixel, pixel < pixels, other=UNCOUNTED)
    loss = tl.load(losses + start + pixel, pixel < pixels, other=0)
    loss *= tl.load(class_weights + label, label != UNCOUNTED, other=0)
    store_loss(out, loss, image, pixel, pixels, MEAN)


@triton.jit
def _backward(
    grad,  # [] if MEAN, else [B, P]
    logits,  # [B, K, P]
    weight,  # [B] or None
    log_sum,  # [B, P]
    labels,  # [B, P]
    class_weights,  # [K]
    out,  # [B, K, P]
    batch,
    classes,
    pixels,
    MEAN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: a tile of classes and pixels of one image."""
    b, channel, pixel = tile_of_program(classes, pixels, INDEX, BLOCK_C, BLOCK_P)
    in_map = pixel < pixels
    is_class = (channel < classes)[:, None]
    mask = is_class & in_map[None, :]
    w = image_weight(weight, b, ACCUMULATE)
    pixel_offset = image_start(b, 1, pixels) + pixel
    label = tl.load(labels + pixel_offset, in_map, other=UNCOUNTED)
    log_total = tl.load(log_sum + pixel_offset, in_map, other=0)
    factor = loss_gradient(grad, weight, b, batch, pixel, pixels, MEAN, ACCUMULATE)
    factor *= tl.load(class_weights + label, label != UNCOUNTED, other=0)
    offsets = tile_offsets(channel, pixel, classes, pixels, CHANNELS_LAST)
    offsets += image_start(b, classes, pixels)
    read = is_class & (pixel < tl.where(w != 0, pixels, 0))[None, :]
    x = tl.load(logits + offsets, read, other=0).to(ACCUMULATE)
    chosen = (channel[:, None] == label[None, :]).to(ACCUMULATE)
    result = factor[None, :] * (tl.exp(x - log_total[None, :]) - chosen)
    result = tl.where(w != 0, result, 0)
    tl.store(out + offsets, to_storage(result, out.dtype.element_ty), mask)
