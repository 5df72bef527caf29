"""Sums of exponentials, a block of channels at a time, for logits of any size (online softmax).

A sum is kept as ``total`` = sum exp(x - m) with the ``shift`` m, the greatest logit so far; a block
that raises m rescales the total. The logsumexp is m + log(total).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_exponentials(total, shift, x, mask):
    """A block of channels (rows) more: total, shift, and exp(x - shift), 0 outside ``mask``."""
    raised = tl.maximum(shift, tl.max(tl.where(mask, x, float("-inf")), 0))
    exponentials = tl.where(mask, tl.exp(x - finite(raised)[None, :]), 0)
    total = total * tl.exp(-rise(raised, shift)) + tl.sum(exponentials, 0)
    return total, raised, exponentials


@triton.jit
def finite(shift):
    """0 in place of minus infinity, the greatest of logits that are all that."""
    return tl.where(shift == float("-inf"), 0, shift)


@triton.jit
def rise(raised, shift):
    """How far a shift rose; 0 from minus infinity, below which nothing was summed."""
    return tl.where(shift == float("-inf"), 0, raised - finite(shift))
