"""Triton's machine code computes the right numbers, in no more instructions than before."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import roofline
from benchmarks.processor import PROCESSORS

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
COUNTED_WITH = "3.8.0"
"""Triton's version that benchmarks/roofline_triton.json is of: others make other code."""

pytestmark = pytest.mark.skipif(
    importlib.metadata.version("triton") != COUNTED_WITH,
    reason=f"tools.sass knows the instructions of Triton {COUNTED_WITH}, as its counts are of it",
)


def run(*arguments):
    """Lines of a process in which Triton compiles; in this one it interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.machine_code", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_matrix_products_are_right():
    assert len(run("results", "sm_80", "float16", "region_pool")) == 3


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_exceptional_numbers_are_multiplied_as_they_are(architecture):
    # An H100 gave, of the sum of two numbers without a scale, the digits that this machine gives.
    assert len(run("exceptional", architecture)) == 2


@pytest.mark.faults
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    # From sm_90 on bfloat16 is compared in pairs, an instruction that tools.sass does not know.
    [(a, d) for a in ("sm_80", "sm_90", "sm_100") for d in ("float32", "float16")]
    + [("sm_80", "bfloat16")],
)
def test_all_results_are_right(architecture, dtype):
    assert len(run("results", architecture, dtype)) == 15


@pytest.mark.parametrize("architecture", ["sm_80", "sm_100"])
def test_counts_are_no_worse_than_committed(architecture):
    case = "pixel_similarity, cross-entropy 27, channels_last, float16"
    assert len(run("counts", architecture, case)) == 2


def test_every_case_is_committed():
    wanted = {str(case) for case, *_ in roofline.cases()}
    kept = roofline.read_baseline("triton")
    assert {name: set(rows) for name, rows in kept.items()} == dict.fromkeys(PROCESSORS, wanted)
