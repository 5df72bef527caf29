"""Every instruction set of the CPU kernels passes the op suite, not only this machine's best."""

import subprocess
import sys

import pytest

from densesiam import _libraries
from densesiam.ops import _backends
from densesiam.ops._operations import interface
from tests.csrc.cpu.build import COMPILER, build_cpu
from tests.csrc.cpu.suite import run_suite

BEST = _libraries.cpu_capability()
needs_kernels = pytest.mark.skipif(
    _backends.missing("cpu") is not None, reason="the CPU kernels were not built"
)


@pytest.mark.faults
@needs_kernels
@pytest.mark.parametrize("capability", ["baseline", "avx2"])  # other tests run on the best
def test_lesser_instruction_sets(capability):
    if BEST == "portable" or (capability, BEST) == ("avx2", "baseline"):
        pytest.skip(f"this machine has no {capability}: its best is {BEST}")
    report = run_suite(None, {"DENSESIAM_CPU_CAPABILITY": capability})
    assert f"CPU kernels: {capability}\n" in report


@pytest.mark.faults
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_portable_code():
    """What machines other than x86-64 get, compiled and run on this one."""
    library = build_cpu("portable", "-DDENSESIAM_PORTABLE", "-Wall", "-Wextra", "-Werror")
    assert "CPU kernels: portable\n" in run_suite(library, {})


@needs_kernels
def test_a_wrong_name_is_an_error(monkeypatch):
    monkeypatch.setenv("DENSESIAM_CPU_CAPABILITY", "avx10")
    message = "DENSESIAM_CPU_CAPABILITY must be one of baseline, avx2, avx512, got 'avx10'"
    with pytest.raises(ValueError, match=message):
        _libraries.load("_cpu", interface())


@needs_kernels
def test_the_environment_report_names_it():
    command = [sys.executable, "-m", "densesiam.collect_env"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"CPU kernels: {BEST}\n" in report
