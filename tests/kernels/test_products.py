"""region_pool's products on tensor cores, which the interpreter has not: they are modelled here."""

import pytest
import torch

from densesiam import ops
from densesiam.ops import _backends
from tests.ops.exceptional import assert_exceptional_numbers_are_right
from tests.ops.suite import LAYOUTS

# Tensor cores are modelled here by what replaces the interpreter's product. Where there is a GPU,
# Triton compiles for it, and the op suite runs the same check on real ones.
if _backends.missing("triton") is not None or torch.cuda.is_available():
    pytest.skip("runs in Triton's interpreter only", allow_module_level=True)

import numpy as np
import triton.language as tl
from triton._C.libtriton.ir import INPUT_PRECISION
from triton.runtime import interpreter


def cut(x):
    """The 19 bits of tf32."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded(x):
    """The number of tf32 next to x."""
    up = (x.view(np.uint32) + np.uint32(0x1000)).view(np.float32)
    return cut(np.where(np.isfinite(x), up, x))


@np.errstate(invalid="ignore", over="ignore")
def create_dot(a, b, sums, precision, _):
    """What an H100 gives, by tf32, and by three products of tf32 as Triton makes them.

    Numbers of tf32 below 2^-126 are multiples of 2^-136. Of features of 1e-37 the GPU gave by
    tf32x3 -1.39184071e-37 where -1.39199618e-37 was right, which this gives as well
    (benchmarks/results/nvidia-h100-80gb-hbm3/report.md).
    """
    a, b, total = a.data, b.data, sums.data.astype(np.float64)
    if precision == INPUT_PRECISION.TF32x3:
        high, other = rounded(a), rounded(b)
        low, other_low = cut(a - high).astype(np.float64), cut(b - other).astype(np.float64)
        lesser = low @ other + high @ other_low
        total = total + np.where(np.isnan(lesser), 0, lesser)
        a, b = high, other
    elif precision != INPUT_PRECISION.TF32:
        raise AssertionError(f"{precision} is not on tensor cores")
    total = total + cut(a).astype(np.float64) @ cut(b).astype(np.float64)
    return interpreter.TensorHandle(total.astype(np.float32), tl.float32)


@pytest.fixture
def tensor_cores(monkeypatch):
    monkeypatch.setattr(interpreter.interpreter_builder, "create_dot", create_dot)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exceptional_numbers_are_multiplied_as_they_are(tensor_cores, layout):
    with ops.use_backend("triton"):
        assert_exceptional_numbers_are_right(layout, "cpu")


@pytest.mark.parametrize("x", [2.0**-100, 2.0**-123])
def test_the_lesser_number_is_lost_where_it_vanishes(x):
    def handle(value):
        return interpreter.TensorHandle(np.full((1, 1), value, np.float32), tl.float32)

    found = create_dot(handle(x * (1 + 2.0**-20)), handle(1), handle(0), INPUT_PRECISION.TF32x3, 0)
    assert found.data == (x * (1 + 2.0**-20) if x > 2.0**-110 else x)
