"""Number types on the device: everything is computed in float32 or float64, also under test."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), NumPy on the CPU."""


@triton.jit
def to_storage(value, dtype: tl.constexpr):
    """The value in its storage type, rounded to nearest even.

    The interpreter truncates on the way to bfloat16, so there the bits are rounded by hand first.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000
        value = tl.where(value == value, rounded.to(tl.float32, bitcast=True), value)
    return value.to(dtype)


@triton.jit
def from_storage(value, dtype: tl.constexpr):
    """The value of a storage type, or a bool, in the type of sums, exactly.

    The interpreter takes subnormal bfloat16 numbers for others, so there their bits are moved.
    """
    if INTERPRETED and value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        value = bits.to(tl.float32, bitcast=True)
    return value.to(dtype)
