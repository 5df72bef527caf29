"""The kernels compile, without a GPU, for those that they are meant for (see audit.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# Every architecture, type width and layout once; `python -m tests.triton.audit` has them all.
TARGETS = [
    ["--arch", "80", "--dtype", "bfloat16", "--layout", "channels_last"],
    ["--arch", "90", "--dtype", "float32", "--layout", "planar"],
    ["--arch", "100", "--dtype", "float16", "--layout", "planar"],
    ["--arch", "120", "--dtype", "float32", "--layout", "channels_last"],
]
MOST_REGISTERS = {"region_pool": 255}  # 256 threads: one block a multiprocessor at least
SHARED = 99 * 1024  # bytes a block may have on the smallest, sm_86, sm_89 and sm_120


def audit(*options: str) -> list[dict]:
    # In a process of its own: in this one Triton interprets.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.triton.audit", "--json", *options]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm_{t[1]}-{t[3]}-{t[5]}")
def test_kernels_fit(target):
    kernels = audit(*target)
    assert len(kernels) > 20
    for kernel in kernels:
        assert kernel["stack"] == 0, f"spills: {kernel}"
        assert kernel["registers"] <= MOST_REGISTERS.get(kernel["op"], 128), kernel
        assert kernel["shared"] <= SHARED, kernel
        assert kernel["bfloat16_arithmetic"] == [], kernel


@pytest.mark.slow
def test_kernels_compile_with_wide_offsets():
    kernels = audit("--wide", "--dtype", "float32", "--layout", "planar")
    assert {kernel["stack"] for kernel in kernels} == {0}


def test_bfloat16_arithmetic_is_found():
    from tests.triton.audit import bfloat16_arithmetic

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
