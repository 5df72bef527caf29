"""Losses between two vectors of channels: what a kernel is given to compute one of them.

A loss is five functions. ``pixel_loss`` and ``overlap_similarity`` read a block of channels at a
time and keep sums of each pixel (those that ``start`` gives and ``add`` adds to). ``scales`` tells
whether the vectors are too large for that. ``finish`` makes of the sums the loss and the two
statistics that ``gradient`` needs.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .softmax import add_exponentials, finite, rise


class PixelLoss(NamedTuple):
    """A loss, as constant arguments of a kernel.

    Attributes:
        start: ``start(ACCUMULATE, BLOCK_P)``: a tuple of (BLOCK_P,), the sums of no channels.
        add: ``add(sums, p, z, mask)``: the sums with a block of channels (BLOCK_C, BLOCK_P) more;
            p and z are 0 outside ``mask`` (BLOCK_C, 1).
        scales: ``scales(sums)``: what p and z of each pixel are to be multiplied by, (BLOCK_P,)
            each, for their sums to be finite; None where they always are.
        finish: ``finish(sums, p_scale, z_scale)``: (BLOCK_P,) losses, first and second statistics.
        gradient: ``gradient(p, z, first, second)``: (BLOCK_C, BLOCK_P), of each pixel's loss to p.
    """

    start: triton.JITFunction
    add: triton.JITFunction
    scales: triton.JITFunction | None
    finish: triton.JITFunction
    gradient: triton.JITFunction

    @property
    def sums(self) -> dict[str, triton.JITFunction]:
        """What a forward kernel takes."""
        return {"START": self.start, "ADD": self.add, "SCALES": self.scales, "FINISH": self.finish}


@triton.jit
def start_products(ACCUMULATE: tl.constexpr, BLOCK_P: tl.constexpr):
    """p.p, z.z and p.z of no channels."""
    zeros = tl.zeros([BLOCK_P], ACCUMULATE)
    return zeros, zeros, zeros


@triton.jit
def add_products(sums, p, z, mask):
    """p.p, z.z and p.z."""
    pp, zz, pz = sums
    return pp + tl.sum(p * p, 0), zz + tl.sum(z * z, 0), pz + tl.sum(p * z, 0)


@triton.jit
def scales_of_products(sums):
    """1, and for vectors whose square may overflow 2 to minus 5/8 of all exponents."""
    # Above 3/4 of the exponents a square is large: what vanishes of a scaled vector is nothing
    # beside the rest, and p.z is finite too. NaN is large.
    pp, zz, _ = sums
    large: tl.constexpr = 2.0**768 if pp.dtype == tl.float64 else 2.0**96
    scale: tl.constexpr = 2.0**-640 if pp.dtype == tl.float64 else 2.0**-80
    ones = tl.full(pp.shape, 1, pp.dtype)
    return tl.where(pp < large, ones, ones * scale), tl.where(zz < large, ones, ones * scale)


@triton.jit
def _finish_cosine(sums, p_scale, z_scale):
    # Statistics a = 1 / (|p| |z|) and b = cos / |p|^2, norms clamped below at 1e-8; b = 0 below the
    # clamp, where the norm is constant.
    pp, zz, pz = sums
    # The least square of a scaled vector is 0.
    p_least, z_least = 1e-16 * p_scale * p_scale, 1e-16 * z_scale * z_scale
    a = tl.rsqrt(tl.maximum(pp, p_least)) * tl.rsqrt(tl.maximum(zz, z_least))
    cosine = pz * a
    b = tl.where(pp < p_least, 0, cosine / tl.maximum(pp, p_least))
    return -cosine, a * p_scale * z_scale, b * p_scale * p_scale


@triton.jit
def combination(p, z, a, b):
    """Linear combination b p - a z, with a and b of each pixel."""
    return b[None, :] * p - a[None, :] * z


COSINE = PixelLoss(start_products, add_products, scales_of_products, _finish_cosine, combination)
"""Minus the cosine."""


@triton.jit
def _start_cross_entropy(ACCUMULATE: tl.constexpr, BLOCK_P: tl.constexpr):
    # With m the greatest logit so far: sum exp(p - m_p), sum exp(z - m_z),
    # sum exp(z - m_z) (p - m_p), m_p, m_z.
    zeros = tl.zeros([BLOCK_P], ACCUMULATE)
    shift = zeros - float("inf")
    return zeros, zeros, zeros, shift, shift


@triton.jit
def _add_cross_entropy(sums, p, z, mask):
    # A block that raises m rescales the sums (online softmax): logits of any size stay finite.
    sum_p, sum_z, dot, shift_p, shift_z = sums
    sum_p, raised_p, _ = add_exponentials(sum_p, shift_p, p, mask)
    # The terms so far change with both shifts.
    dot = dot - sum_z * rise(raised_p, shift_p)
    sum_z, raised_z, exp_z = add_exponentials(sum_z, shift_z, z, mask)
    dot *= tl.exp(-rise(raised_z, shift_z))
    dot += tl.sum(tl.where(mask, exp_z * (p - finite(raised_p)[None, :]), 0), 0)
    return sum_p, sum_z, dot, raised_p, raised_z


@triton.jit
def _finish_cross_entropy(sums, p_scale, z_scale):
    # Statistics logsumexp p and logsumexp z.
    sum_p, sum_z, dot, shift_p, shift_z = sums
    log_p = tl.log(sum_p)
    return log_p - dot / sum_z, shift_p + log_p, shift_z + tl.log(sum_z)


@triton.jit
def _gradient_cross_entropy(p, z, log_sum_p, log_sum_z):
    # softmax p - softmax z
    return tl.exp(p - log_sum_p[None, :]) - tl.exp(z - log_sum_z[None, :])


CROSS_ENTROPY = PixelLoss(
    _start_cross_entropy, _add_cross_entropy, None, _finish_cross_entropy, _gradient_cross_entropy
)
"""Cross-entropy of softmax p toward softmax z."""

KINDS = {"cosine": COSINE, "cross_entropy": CROSS_ENTROPY}
"""The losses that are called similarities, by name."""
