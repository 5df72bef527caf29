"""What nvcc made of the kernels computes the right numbers, executed instruction by instruction."""

import pytest
import torch

from tests.csrc.cuda.calls import CALLS, assert_right, computed
from tests.emulator.machine_code import built_for, on_machine_code


@pytest.mark.parametrize(
    ("op", "architecture", "dtype", "channels", "channels_last"),
    [
        ("overlap_sample", "sm_90", torch.float32, 8, True),
        ("pseudo_label_loss", "sm_80", torch.float32, 27, False),
        ("region_pool", "sm_90", torch.float16, 8, True),
        ("cross_entropy", "sm_100", torch.float32, 8, False),
        *(
            pytest.param(op, architecture, dtype, channels, last, marks=pytest.mark.faults)
            for op in CALLS
            for architecture in ("sm_80", "sm_90", "sm_100")
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
            for channels in (8, 27)
            for last in (False, True)
        ),
    ],
)
def test_results_are_those_of_the_reference(op, architecture, dtype, channels, channels_last):
    if not built_for(architecture):
        pytest.skip(f"no CUDA library was built for {architecture}")
    with on_machine_code(architecture):
        values = computed(op, dtype, channels, channels_last)
    assert_right(values, op, dtype, channels, channels_last)
