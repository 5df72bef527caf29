"""The emulator finds what it claims to find: every detector against a kernel with that bug."""

import ctypes
import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.emulator.build import build_emulator, build_faults

ROOT = Path(__file__).parents[1]

ERRORS = {
    "barrier_in_branch": "divergent barrier .*16 threads.* wait at __syncthreads.*48 threads",
    "two_barriers": "divergent barrier",
    "lane_missing": "deadlock .*wait at a warp collective of mask ffffffff",
    "caller_not_in_mask": "lane 0 calls a warp collective whose mask fffffffe does not name it",
    "source_not_in_mask": "shuffles from lane 20, which the mask ffff does not name",
    "warp_against_block": "deadlock",
    "too_much_shared": "a block uses 49156 bytes of shared memory and has 49152",
    "misaligned": "misaligned load of 16 bytes",
    "empty_grid": "no GPU takes a grid",
}


@cache
def library(sanitize=""):
    return ctypes.CDLL(str(build_faults(sanitize)))


def run(kernel, bug, order=0):
    """The 64 results, or the emulator's message."""
    library().run_fault.restype = ctypes.c_char_p
    library().emulator_set_order(order, ctypes.c_uint64(1))
    result = (ctypes.c_float * 64)()
    error = library().run_fault(kernel.encode(), bug, result)
    return error.decode() if error else list(result)


@pytest.mark.parametrize("kernel", ERRORS)
def test_error_is_found_and_located(kernel):
    found = run(kernel, True)
    assert isinstance(found, str)
    assert re.search(ERRORS[kernel], found, re.DOTALL), found
    assert isinstance(run(kernel, False), list)


def test_uninitialised_shared_memory_is_nan():
    assert all(math.isnan(value) for value in run("uninitialised_shared", True))
    assert run("uninitialised_shared", False) == [0] * 64


@pytest.mark.parametrize("kernel", ["missing_barrier", "order_of_blocks"])
def test_orders_disagree_where_order_matters(kernel):
    def results(bug):
        return [str(run(kernel, bug, order)) for order in range(3)]

    assert len(set(results(True))) > 1
    assert len(set(results(False))) == 1


SANITIZED = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.run_fault.restype = ctypes.c_char_p
print(library.run_fault(sys.argv[2].encode(), sys.argv[3] == "bug", (ctypes.c_float * 64)()))
"""


def run_sanitized(*command, sanitize=""):
    """A Python process with the sanitizers' runtimes, and the kernels built with `sanitize`."""
    from torch.utils.cpp_extension import get_cxx_compiler

    runtimes = [
        subprocess.run(
            [get_cxx_compiler(), f"-print-file-name=lib{name}.so"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "DENSESIAM_SANITIZE": sanitize,
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["beyond_shared", "beyond_global"])
def test_sanitizer_sees_accesses_out_of_bounds(kernel):
    path = build_faults("address,undefined")
    wrong = run_sanitized("-c", SANITIZED, path, kernel, "bug")
    assert "heap-buffer-overflow" in wrong.stderr, wrong.stderr
    right = run_sanitized("-c", SANITIZED, path, kernel, "no bug")
    assert right.stdout.strip() == "None", right.stderr


@pytest.mark.slow
def test_kernels_stay_inside_their_memory():
    # Vector alignment is the emulator's own check; AddressSanitizer adds the bounds.
    build_emulator("address")  # here, where the compiler itself runs without the sanitizer
    tests = [str(ROOT / "tests/test_cuda_kernels.py"), "-k", "order or dropped"]
    done = run_sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, sanitize="address")
    assert done.returncode == 0, done.stdout + done.stderr
