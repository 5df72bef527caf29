"""Region embeddings: features summed over soft regions, the softmax fused into the products.

    regions[n, c] = sum_p m[n, p] f[c, p],  m = softmax over n of the logits

and with G the gradient to the regions, g that to their masses sum_p m[n, p]:

    grad f[c, p] = sum_n m[n, p] G[n, c]
    grad logits[n, p] = m[n, p] (d[n, p] - sum_k m[k, p] d[k, p])
    d[n, p] = sum_c G[n, c] f[c, p] + g[n]

The mask m lives in registers, tile by tile. Forward splits the sum over pixels into a number of
parts that follows from the shape, and adds the parts in order.

Products run on tensor cores: half types multiply in their own type forward, with the mask rounded
to it, and in TF32 backward, whose range holds any gradient. A float32 is taken as the sum of two
numbers of TF32, a product as three of them, and what is left out is 2^-22 of it. Sums are float32;
float64 is float64 throughout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from densesiam import _layout

from .addressing import block_count, block_range, image_start, tile_offsets
from .args import check_pixels, check_tensor
from .launch import LARGEST_BLOCK, accumulate_type, in_layout, index_type, launch
from .numerics import INTERPRETED, to_storage
from .reduction import BLOCK
from .softmax import add_exponentials, finite

LOW_SCALE = tl.constexpr(2.0**10)
"""What the lesser of two numbers of TF32 is multiplied by until the sums are made.

TF32 has multiples of 2^-136, and the lesser number of 1e-37 is about 2^-135. Scaled, it is at most
half the float32 itself, so that the sums of both lesser products overflow only where sums of the
whole ones could.
"""

WANTED_PROGRAMS = 512
"""Forward splits the sum over pixels until there are about so many: enough for a large GPU."""


def region_pool(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regions, their masses and the logits' logsumexp, of the dispatcher's schema."""
    _check("region_pool", features, logits)
    batch, channels, pixels = features.shape
    regions = logits.shape[1]
    dtype = _layout.accumulate_dtype(features)
    out = features.new_zeros([batch, regions, channels], dtype=dtype)
    mass = features.new_zeros([batch, regions], dtype=dtype)
    log_sum = features.new_empty([batch, pixels], dtype=dtype)
    if batch * pixels == 0:
        return out, mass, log_sum
    features, logits, layouts = _as_read(features, logits)
    # Up to LARGEST_BLOCK regions, one tile holds a pixel's whole softmax; with more, the logsumexp
    # takes a pass of its own.
    block_n, block_p = _block(regions), _short_block(features)
    largest_tile = {8: 2048, 4: 4096}.get(features.element_size(), 8192)
    block_c = _block(channels, min(LARGEST_BLOCK, largest_tile // block_n))
    blocks = triton.cdiv(regions, block_n) * max(triton.cdiv(channels, block_c), 1)
    splits, steps = _split(pixels, block_p, batch * blocks)
    # Unsplit, the parts are the sums themselves.
    parts = out.new_empty([splits, *out.shape]) if splits > 1 else out
    mass_parts = mass.new_empty([splits, *mass.shape]) if splits > 1 else mass
    fused = regions <= block_n
    if not fused:
        launch(
            _log_sum,
            batch * triton.cdiv(pixels, block_p),
            logits,
            log_sum,
            regions,
            pixels,
            ACCUMULATE=layouts["ACCUMULATE"],
            INDEX=layouts["INDEX"],
            LOGITS_CHANNELS_LAST=layouts["LOGITS_CHANNELS_LAST"],
            BLOCK_N=block_n,
            BLOCK_P=block_p,
        )
    launch(
        _forward,
        splits * batch * blocks,
        features,
        logits,
        log_sum,
        parts,
        mass_parts,
        batch,
        regions,
        channels,
        pixels,
        steps,
        FUSED=fused,
        **layouts,
        BLOCK_N=block_n,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        **_options(features),
    )
    if splits > 1:
        for source, target in ((parts, out), (mass_parts, mass)):
            count = target.numel()
            launch(_add_parts, triton.cdiv(count, BLOCK.value), source, target, splits, count)
    return out, mass, log_sum


def region_pool_backward(
    grad: Tensor,
    grad_mass: Tensor | None,
    features: Tensor,
    logits: Tensor,
    log_sum: Tensor,
    need_features: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to features and logits, each in its input's layout; empty where not needed."""
    op = "region_pool_backward"
    _check(op, features, logits)
    batch, channels, pixels = features.shape
    regions = logits.shape[1]
    sums = _layout.accumulate_dtype(features)
    check_tensor(op, "grad", grad, sums, (batch, regions, channels), features)
    check_tensor(op, "grad_mass", grad_mass, sums, (batch, regions), features)
    check_tensor(op, "log_sum", log_sum, sums, (batch, pixels), features)
    grad_features = _layout.empty_like(features) if need_features else features.new_empty([0])
    grad_logits = _layout.empty_like(logits) if need_logits else logits.new_empty([0])
    if batch * pixels == 0:
        return grad_features, grad_logits
    features, logits, layouts = _as_read(features, logits)
    grad = grad.contiguous()
    grad_mass = None if grad_mass is None else grad_mass.contiguous()
    log_sum = log_sum.contiguous()
    if grad_features.numel():
        block_c, block_p = _block(channels, 64), 32
        launch(
            _backward_features,
            batch * triton.cdiv(pixels, block_p) * triton.cdiv(channels, block_c),
            grad,
            logits,
            log_sum,
            grad_features,
            regions,
            channels,
            pixels,
            **layouts,
            BLOCK_N=_block(regions, _short_block(features)),
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            **_options(features),
        )
    if grad_logits.numel():
        block_n, block_p = _block(regions), _short_block(features)
        launch(
            _backward_logits,
            batch * triton.cdiv(pixels, block_p),
            grad,
            grad_mass,
            features,
            logits,
            log_sum,
            grad_logits,
            regions,
            channels,
            pixels,
            ONE_BLOCK=regions <= block_n,
            **layouts,
            BLOCK_N=block_n,
            BLOCK_C=_block(channels, _short_block(features)),
            BLOCK_P=block_p,
            **_options(features, warps=4 if block_n <= 32 else 8),
        )
    return grad_features, grad_logits


def _check(op: str, features: Tensor, logits: Tensor) -> None:
    check_pixels(op, "features", features, channels=0)
    check_pixels(op, "logits", logits)
    shape = features.shape[0], logits.shape[1], features.shape[2]
    check_tensor(op, "logits", logits, features.dtype, shape, features)


def _as_read(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, dict[str, object]]:
    """Both tensors as kernels read them, and what tells kernels how."""
    features_last = _layout.is_channels_last(features)
    logits_last = _layout.is_channels_last(logits)
    layouts = {
        "PRECISION": _precision(features),
        "ACCUMULATE": accumulate_type(features),
        "INDEX": index_type(
            features.shape[1:], logits.shape[1:], (logits.shape[1], features.shape[1])
        ),
        "CHANNELS_LAST": features_last,
        "LOGITS_CHANNELS_LAST": logits_last,
    }
    return in_layout(features, features_last), in_layout(logits, logits_last), layouts


def _block(extent: int, largest: int = LARGEST_BLOCK) -> int:
    """Block of an axis of a matrix product, which takes at least 16."""
    return min(max(triton.next_power_of_2(extent), 16), largest)


def _short_block(features: Tensor) -> int:
    """Block of the axis that a matrix product sums over, and of pixels beside many regions."""
    return 16 if features.dtype == torch.float64 else 32


def _options(features: Tensor, warps: int = 8) -> dict[str, int]:
    """How to compile: with these and the blocks above no kernel spills on any GPU since sm_80."""
    stages = 1 if features.dtype == torch.float64 else 2
    return {"num_warps": warps, "num_stages": stages, "maxnreg": 255}


def _split(pixels: int, block_p: int, programs: int) -> tuple[int, int]:
    """Parts of the sum over pixels, and blocks of pixels a part."""
    blocks = triton.cdiv(pixels, block_p)
    steps = triton.cdiv(blocks, max(triton.cdiv(WANTED_PROGRAMS, programs), 1))
    return triton.cdiv(blocks, steps), steps


def _precision(features: Tensor) -> str:
    """How tensor cores multiply float32 numbers: `_add_product` takes "tf32x3" by hand."""
    return {torch.float64: "ieee", torch.float32: "tf32x3"}.get(features.dtype, "tf32")


@triton.jit
def _log_sum(
    logits,  # [B, N, P]
    log_sum,  # [B, P]
    regions,
    pixels,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    LOGITS_CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: logsumexp over all regions at a block of pixels of one image."""
    blocks = block_count(pixels, INDEX, BLOCK_P)
    b = tl.program_id(0) // blocks
    pixel = block_range(tl.program_id(0) % blocks, INDEX, BLOCK_P)
    image = logits + image_start(b, regions, pixels)
    total = tl.zeros([BLOCK_P], ACCUMULATE)
    shift = total - float("inf")
    for first in range(0, regions, BLOCK_N):
        region = tl.cast(first, INDEX) + tl.arange(0, BLOCK_N)
        x = load_tile(image, region, pixel, regions, pixels, LOGITS_CHANNELS_LAST).to(ACCUMULATE)
        total, shift, _ = add_exponentials(total, shift, x, (region < regions)[:, None])
    tl.store(log_sum + image_start(b, 1, pixels) + pixel, shift + tl.log(total), pixel < pixels)


@triton.jit
def load_tile(image, channel, pixel, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """Every channel (rows) at every pixel (columns) of one image, 0 outside it."""
    mask = (channel < channels)[:, None] & (pixel < pixels)[None, :]
    offsets = tile_offsets(channel, pixel, channels, pixels, CHANNELS_LAST)
    return tl.load(image + offsets, mask, other=0)


@triton.jit
def _add_product(sums, low_sums, a, b, PRECISION: tl.constexpr):
    """The matrix product a b more, to be made whole by `_whole`."""
    dtype: tl.constexpr = sums.dtype
    if PRECISION == "tf32x3":
        a, low_a = _tf32_pair(a)
        b, low_b = _tf32_pair(b)
        low_sums = tl.dot(low_a, b, low_sums, input_precision="tf32")
        low_sums = tl.dot(a, low_b, low_sums, input_precision="tf32")
        sums = tl.dot(a, b, sums, input_precision="tf32")
    else:
        sums = tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=dtype)
    return sums, low_sums


@triton.jit
def _whole(sums, low_sums, PRECISION: tl.constexpr):
    """Sums of products, those of the lesser numbers included."""
    if PRECISION == "tf32x3":  # beside infinity and NaN the lesser ones are anything
        sums = tl.where(tl.abs(sums) < float("inf"), sums + low_sums / LOW_SCALE, sums)
    return sums


@triton.jit
def _tf32_pair(x):
    """The number of tf32 next to x, and LOW_SCALE times what is left of x."""
    if INTERPRETED:  # it knows no assembly
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x1000) & 0xFFFFE000
        high = tl.where(tl.abs(x) < float("inf"), rounded.to(tl.float32, bitcast=True), x)
    else:
        high = tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r, r", [x], tl.float32, is_pure=True, pack=1
        )
    return high, (x - high) * LOW_SCALE


@triton.jit
def _forward(
    features,  # [B, C, P]
    logits,  # [B, N, P]
    log_sum,  # [B, P]
    out,  # [splits, B, N, C]
    mass,  # [splits, B, N]
    batch,
    regions,
    channels,
    pixels,
    steps,
    FUSED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LOGITS_CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: a block of regions and channels, summed over one part of an image's pixels."""
    channel_blocks = tl.maximum(tl.cdiv(channels, BLOCK_C), 1)
    region_blocks = tl.cdiv(regions, BLOCK_N)
    program = tl.program_id(0)
    channel_block = program % channel_blocks
    channel = block_range(channel_block, INDEX, BLOCK_C)
    region = block_range(program // channel_blocks % region_blocks, INDEX, BLOCK_N)
    image = program // (channel_blocks * region_blocks)  # of all parts: part, then image
    b = image % batch
    part = image // batch
    features += image_start(b, channels, pixels)
    logits += image_start(b, regions, pixels)
    log_sum += image_start(b, 1, pixels)
    is_region = (region < regions)[:, None]
    sums = tl.zeros([BLOCK_N, BLOCK_C], ACCUMULATE)
    low_sums = tl.zeros([BLOCK_N, BLOCK_C], ACCUMULATE)
    masses = tl.zeros([BLOCK_N], ACCUMULATE)
    for step in range(steps):
        pixel = block_range(part * steps + step, INDEX, BLOCK_P)
        in_map = pixel < pixels
        x = load_tile(logits, region, pixel, regions, pixels, LOGITS_CHANNELS_LAST).to(ACCUMULATE)
        if FUSED:
            greatest = finite(tl.max(tl.where(is_region, x, float("-inf")), 0))
            exponentials = tl.where(is_region, tl.exp(x - greatest[None, :]), 0)
            total = tl.sum(exponentials, 0)
            mask = exponentials / total[None, :]
            if channel_block == 0:
                tl.store(log_sum + pixel, greatest + tl.log(total), in_map)
        else:
            log_total = tl.load(log_sum + pixel, in_map, other=0)
            mask = tl.where(is_region, tl.exp(x - log_total[None, :]), 0)
        mask = tl.where(in_map[None, :], mask, 0)
        f = load_tile(features, channel, pixel, channels, pixels, CHANNELS_LAST)
        mask = to_storage(mask, f.dtype)
        masses += tl.sum(mask.to(ACCUMULATE), 1)  # as rounded: of the weights that are used
        if INTERPRETED and not ACCUMULATE.is_fp64():  # its products know no bfloat16
            mask = mask.to(tl.float32)
            f = f.to(tl.float32)
        sums, low_sums = _add_product(sums, low_sums, mask, tl.trans(f), PRECISION)
    sums = _whole(sums, low_sums, PRECISION)
    offsets = image_start(image, regions, channels) + region[:, None] * channels + channel[None, :]
    tl.store(out + offsets, sums, is_region & (channel < channels)[None, :])
    if channel_block == 0:
        tl.store(mass + image_start(image, 1, regions) + region, masses, region < regions)


@triton.jit
def _add_parts(
    parts,  # [splits, count]
    out,  # [count]
    splits,
    count,
):
    """One program: a block of numbers, each summed over the parts in order."""
    item = block_range(tl.program_id(0), tl.int64, BLOCK)
    sums = tl.zeros([BLOCK], out.dtype.element_ty)
    for part in range(splits):
        sums += tl.load(parts + tl.cast(part, tl.int64) * count + item, item < count, other=0)
    tl.store(out + item, sums, item < count)


@triton.jit
def _mask_tile(logits, log_total, region, pixel, regions, pixels, CHANNELS_LAST: tl.constexpr):
    """The mask of a block of regions and pixels; outside the map it may be anything."""
    x = load_tile(logits, region, pixel, regions, pixels, CHANNELS_LAST).to(log_total.dtype)
    return tl.where((region < regions)[:, None], tl.exp(x - log_total[None, :]), 0)


@triton.jit
def _grad_tile(grad, region, channel, regions, channels):
    """The gradient to a block of regions and channels, 0 outside."""
    mask = (region < regions)[:, None] & (channel < channels)[None, :]
    return tl.load(grad + region[:, None] * channels + channel[None, :], mask, other=0)


@triton.jit
def _backward_features(
    grad,  # [B, N, C]
    logits,  # [B, N, P]
    log_sum,  # [B, P]
    out,  # [B, C, P]
    regions,
    channels,
    pixels,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LOGITS_CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: a block of channels and pixels of one image, summed over all regions."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    pixel_blocks = block_count(pixels, INDEX, BLOCK_P)
    program = tl.program_id(0)
    channel = block_range(program % channel_blocks, INDEX, BLOCK_C)
    pixel = block_range(program // channel_blocks % pixel_blocks, INDEX, BLOCK_P)
    b = program // (channel_blocks * pixel_blocks)
    grad += image_start(b, regions, channels)
    logits += image_start(b, regions, pixels)
    log_total = tl.load(log_sum + image_start(b, 1, pixels) + pixel, pixel < pixels, other=0)
    sums = tl.zeros([BLOCK_C, BLOCK_P], ACCUMULATE)
    low_sums = tl.zeros([BLOCK_C, BLOCK_P], ACCUMULATE)
    for first in range(0, regions, BLOCK_N):
        region = tl.cast(first, INDEX) + tl.arange(0, BLOCK_N)
        mask = _mask_tile(logits, log_total, region, pixel, regions, pixels, LOGITS_CHANNELS_LAST)
        g = _grad_tile(grad, region, channel, regions, channels)
        sums, low_sums = _add_product(sums, low_sums, tl.trans(g), mask, PRECISION)
    offsets = tile_offsets(channel, pixel, channels, pixels, CHANNELS_LAST)
    inside = (channel < channels)[:, None] & (pixel < pixels)[None, :]
    result = to_storage(_whole(sums, low_sums, PRECISION), out.dtype.element_ty)
    tl.store(out + image_start(b, channels, pixels) + offsets, result, inside)


@triton.jit
def _backward_logits(
    grad,  # [B, N, C]
    grad_mass,  # [B, N] or None
    features,  # [B, C, P]
    logits,  # [B, N, P]
    log_sum,  # [B, P]
    out,  # [B, N, P]
    regions,
    channels,
    pixels,
    ONE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LOGITS_CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: all regions at a block of pixels of one image."""
    blocks = block_count(pixels, INDEX, BLOCK_P)
    b = tl.program_id(0) // blocks
    pixel = block_range(tl.program_id(0) % blocks, INDEX, BLOCK_P)
    in_map = pixel < pixels
    grad += image_start(b, regions, channels)
    features += image_start(b, channels, pixels)
    logits += image_start(b, regions, pixels)
    out += image_start(b, regions, pixels)
    if grad_mass is not None:
        grad_mass += image_start(b, 1, regions)
    log_total = tl.load(log_sum + image_start(b, 1, pixels) + pixel, in_map, other=0)

    # Twice over the regions: for their weighted sum, then for each one's distance from it. One
    # block of regions is simply kept.
    mean = tl.zeros([BLOCK_P], ACCUMULATE)
    for first in range(0, regions, BLOCK_N):
        region = tl.cast(first, INDEX) + tl.arange(0, BLOCK_N)
        d = _grad_mask(
            grad, grad_mass, features, region, pixel, regions, channels, pixels,
            PRECISION, ACCUMULATE, INDEX, CHANNELS_LAST, BLOCK_N, BLOCK_C, BLOCK_P,
        )  # fmt: skip
        mask = _mask_tile(logits, log_total, region, pixel, regions, pixels, LOGITS_CHANNELS_LAST)
        mean += tl.sum(mask * d, 0)
        if ONE_BLOCK:
            _store_grad_logits(
                out,
                mask * (d - mean[None, :]),
                region,
                pixel,
                regions,
                pixels,
                LOGITS_CHANNELS_LAST,
            )
    if not ONE_BLOCK:
        for first in range(0, regions, BLOCK_N):
            region = tl.cast(first, INDEX) + tl.arange(0, BLOCK_N)
            d = _grad_mask(
                grad, grad_mass, features, region, pixel, regions, channels, pixels,
                PRECISION, ACCUMULATE, INDEX, CHANNELS_LAST, BLOCK_N, BLOCK_C, BLOCK_P,
            )  # fmt: skip
            mask = _mask_tile(
                logits, log_total, region, pixel, regions, pixels, LOGITS_CHANNELS_LAST
            )
            _store_grad_logits(
                out,
                mask * (d - mean[None, :]),
                region,
                pixel,
                regions,
                pixels,
                LOGITS_CHANNELS_LAST,
            )


@triton.jit
def _grad_mask(
    grad,  # [B, N, C]
    grad_mass,  # [B, N] or None
    features,  # [B, C, P]
    region,  # [BLOCK_N]
    pixel,  # [BLOCK_P]
    regions,
    channels,
    pixels,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The gradient d to the mask of a block of regions and pixels."""
    d = tl.zeros([BLOCK_N, BLOCK_P], ACCUMULATE)
    low_d = tl.zeros([BLOCK_N, BLOCK_P], ACCUMULATE)
    for first in range(0, channels, BLOCK_C):
        channel = tl.cast(first, INDEX) + tl.arange(0, BLOCK_C)
        g = _grad_tile(grad, region, channel, regions, channels)
        f = load_tile(features, channel, pixel, channels, pixels, CHANNELS_LAST).to(ACCUMULATE)
        d, low_d = _add_product(d, low_d, g, f, PRECISION)
    d = _whole(d, low_d, PRECISION)
    if grad_mass is not None:
        d += tl.load(grad_mass + region, region < regions, other=0)[:, None]
    return d


@triton.jit
def _store_grad_logits(out, result, region, pixel, regions, pixels, CHANNELS_LAST: tl.constexpr):
    offsets = tile_offsets(region, pixel, regions, pixels, CHANNELS_LAST)
    inside = (region < regions)[:, None] & (pixel < pixels)[None, :]
    tl.store(out + offsets, to_storage(result, out.dtype.element_ty), inside)
