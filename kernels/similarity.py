"""The loss between two vectors of channels, read a block of channels at a time.

Both kinds keep five numbers a pixel, whatever the number of channels:

- cosine: p.p, z.z and p.z (two unused);
- cross-entropy, with m the greatest logit so far: sum exp(p - m_p), sum exp(z - m_z),
  sum exp(z - m_z) (p - m_p), m_p, m_z. When a block raises m, the sums are rescaled (online
  softmax), so logits of any size stay finite.

The two statistics that backward needs:

- cosine: a = 1 / (|p| |z|) and b = cos / |p|^2, with b = 0 below the clamp, where the norm is
  constant: the gradient is -(a z - b p);
- cross-entropy: logsumexp p and logsumexp z: the gradient is softmax p - softmax z.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .addressing import image_start
from .softmax import add_exponentials, finite, rise


@triton.jit
def start_sums(COSINE: tl.constexpr, ACCUMULATE: tl.constexpr, BLOCK_P: tl.constexpr):
    """The five numbers of no channels at all."""
    zeros = tl.zeros([BLOCK_P], ACCUMULATE)
    shift = zeros if COSINE else zeros - float("inf")
    return zeros, zeros, zeros, shift, shift


@triton.jit
def add_channels(sums, p, z, mask, COSINE: tl.constexpr):
    """The five numbers with a block of channels (rows) more; those outside ``mask`` are 0."""
    if COSINE:
        pp, zz, pz, shift_p, shift_z = sums
        pp += tl.sum(p * p, 0)
        zz += tl.sum(z * z, 0)
        pz += tl.sum(p * z, 0)
        result = pp, zz, pz, shift_p, shift_z
    else:
        sum_p, sum_z, dot, shift_p, shift_z = sums
        sum_p, raised_p, _ = add_exponentials(sum_p, shift_p, p, mask)
        # The terms so far change with both shifts.
        dot = dot - sum_z * rise(raised_p, shift_p)
        sum_z, raised_z, exp_z = add_exponentials(sum_z, shift_z, z, mask)
        dot *= tl.exp(-rise(raised_z, shift_z))
        dot += tl.sum(tl.where(mask, exp_z * (p - finite(raised_p)[None, :]), 0), 0)
        result = sum_p, sum_z, dot, raised_p, raised_z
    return result


@triton.jit
def loss_and_statistics(sums, COSINE: tl.constexpr):
    """Each pixel's loss, and the two statistics for backward."""
    if COSINE:
        pp, zz, pz, shift_p, shift_z = sums
        # Norms clamped below at 1e-8.
        a = tl.rsqrt(tl.maximum(pp, 1e-16)) * tl.rsqrt(tl.maximum(zz, 1e-16))
        cosine = pz * a
        b = tl.where(pp < 1e-16, 0, cosine / tl.maximum(pp, 1e-16))
        result = -cosine, a, b
    else:
        sum_p, sum_z, dot, shift_p, shift_z = sums
        log_p = tl.log(sum_p)
        result = log_p - dot / sum_z, shift_p + log_p, shift_z + tl.log(sum_z)
    return result


@triton.jit
def gradient(p, z, first, second, COSINE: tl.constexpr):
    """Gradient of each pixel's loss to p, from its two statistics."""
    if COSINE:
        grad = second[None, :] * p - first[None, :] * z
    else:
        grad = tl.exp(p - first[None, :]) - tl.exp(z - second[None, :])
    return grad


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
