"""No offset overflows: tensors of more than 2^31 elements, and grids of as many programs."""

import pytest
import torch

from densesiam.ops import _backends, _triton
from tests.apart import run_apart

if _backends.missing("triton") is not None or torch.cuda.is_available():
    pytest.skip("runs in Triton's interpreter only", allow_module_level=True)

import triton.language as tl

QUICK = ("label_map", "overlap_sample")
"""Ten seconds; the others take up to half a minute, in `make faults`."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.faults])
        for name in sorted(_triton.kernels())
    ],
)
def test_the_end_is_read_and_written(name):
    run_apart("-m", "tests.kernels.large", name)


@pytest.mark.parametrize(
    ("shape", "wide"), [((2, 2**30), True), ((2, 2**30 - 64), False), ((1, 2**31 - 127), True)]
)
def test_offsets_are_as_wide_as_the_image(shape, wide):
    assert _triton.load_module("launch").index_type((1, 1), shape) == (
        tl.int64 if wide else tl.int32
    )


def test_too_many_programs_are_an_error():
    launch = _triton.load_module("launch")
    kernel = _triton.load_module("pixel_loss")._forward
    with pytest.raises(ValueError, match=r"2147483647 programs are more .* split the batch"):
        launch.launch(kernel, 2**31 - 1, torch.zeros(1))
