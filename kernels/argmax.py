"""The first greatest of many channels, a block of them at a time.

Ties go to the lowest index. NaN counts as greater than every number: the first NaN wins.
"""

from __future__ import annotations

import triton
import triton.language as tl

NONE = tl.constexpr(2**31 - 1)


@triton.jit
def start_greatest(dtype: tl.constexpr, BLOCK_P: tl.constexpr):
    """Value and index of the greatest of no channels."""
    return tl.full([BLOCK_P], float("-inf"), dtype), tl.zeros([BLOCK_P], tl.int32)


@triton.jit
def add_candidates(value, label, x, channel, mask):
    """Value and index with a block of channels (rows) more, of greater index than all before."""
    index = channel.to(tl.int32)[:, None]
    is_nan = x != x
    greatest = tl.max(tl.where(mask & (x == x), x, float("-inf")), 0)
    first_nan = tl.min(tl.where(mask & is_nan, index, NONE), 0)
    first = tl.min(tl.where(mask & (x == greatest[None, :]), index, NONE), 0)
    greatest = tl.where(first_nan < NONE, float("nan"), greatest)
    first = tl.where(first_nan < NONE, first_nan, first)
    wins = (greatest > value) | ((greatest != greatest) & (value == value))
    return tl.where(wins, greatest, value), tl.where(wins, first, label)
