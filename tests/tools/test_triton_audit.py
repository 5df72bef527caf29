"""The kernels compile, without a GPU, for those that they are meant for (tools/audit.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.faults
def test_kernels_keep_their_promises():
    # In a process of its own: in this one Triton interprets.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tools.audit", "--backend", "triton"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for architecture in ("sm_80", "sm_90", "sm_100", "sm_120"):
        assert f"{architecture} " in result.stdout


def test_bfloat16_arithmetic_is_found():
    from tools.triton_kernels import bfloat16_arithmetic

    conversions = """
    %1 = tt.load %0, %m : tensor<8x!tt.ptr<bf16>> loc(#loc1)
    %2 = arith.extf %1 : tensor<8xbf16> to tensor<8xf32> loc(#loc2)
    %3 = arith.addf %2, %2 : tensor<8xf32> loc(#loc3)
    %4 = arith.truncf %3 : tensor<8xf32> to tensor<8xbf16> loc(#loc4)
    %5 = tt.dot %4, %4, %3 : tensor<8x8xbf16> * tensor<8x8xbf16> -> tensor<8x8xf32>
    """
    assert bfloat16_arithmetic(conversions) == []
    arithmetic = """
    %3 = arith.addf %2, %2 : tensor<8xbf16> loc(#loc3)
    %4 = math.exp %3 : tensor<8xbf16> loc(#loc4)
    """
    assert bfloat16_arithmetic(arithmetic) == ["arith.addf", "math.exp"]
