"""The emulator finds what it claims to find: every detector against a kernel with that bug."""

import ctypes
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.emulator import coverage
from tests.emulator.build import build_emulator, build_faults

ROOT = Path(__file__).parents[2]

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
    "copy_of_a_thread_that_ends": r"thread \(0, .* ends without waiting for its asynchronous",
    "misaligned_copy": "asynchronous copy must go to 16 aligned bytes of shared memory",
    "misaligned_matrix": "a row of a matrix must be 16 aligned bytes of shared memory",
}


# Memory, and what the two threads do in the order in which the emulator runs them.
RACES = {
    "missing_barrier": r"shared.* reads at faults.cpp:\d+\n.* writes at faults.cpp:\d+",
    "missing_second_barrier": r"shared.* writes at .*\n.* reads at",
    "shuffle_for_syncwarp": r"shared.* writes at .*\n.* reads at",
    "syncwarp_without_a_lane": r"shared.*thread \(16, .* writes at .*\n.*thread \(0, .* reads at",
    "syncwarp_for_block": r"shared.* writes at .*\n.* reads at",
    "copy_over_what_is_read": r"shared.* writes at halves.cuh.*\n.* reads at",
    "copy_without_barrier": r"shared.* reads at .*\n.* writes at",
    "matrix_without_barrier": r"shared.* writes at .*\n.* reads at",
    "blocks_write_one_cell": r"global.*block \(0, .* writes at .*\n.*block \(1, .* writes at",
    "atomics_before_barrier": r"shared.* writes at .*\n.* adds atomically at faults.cpp",
    "neighbouring_bytes": r"shared.* writes at .*\n.* writes at",
}


@cache
def library(variant):
    return ctypes.CDLL(str(build_faults(variant)))


def run(kernel, bug, order=0, variant="plain"):
    """The 64 results, or the emulator's message."""
    faults = library(variant)
    faults.run_fault.restype = ctypes.c_char_p
    faults.emulator_set_order(order, ctypes.c_uint64(1))
    result = (ctypes.c_float * 64)()
    error = faults.run_fault(kernel.encode(), bug, result)
    return error.decode() if error else list(result)


@pytest.mark.parametrize("kernel", ERRORS)
def test_error_is_found_and_located(kernel):
    found = run(kernel, True)
    assert isinstance(found, str)
    assert re.search(ERRORS[kernel], found, re.DOTALL), found
    assert isinstance(run(kernel, False), list)


@pytest.mark.parametrize("kernel", ["uninitialised_shared", "copy_not_waited_for"])
def test_uninitialised_shared_memory_is_nan(kernel):
    assert all(math.isnan(value) for value in run(kernel, True))
    assert run(kernel, False) == [0] * 64


@pytest.mark.parametrize("matrix", range(4))
def test_lanes_get_two_numbers_of_each_matrix(matrix):
    """Number n of the four matrices has the value n; matrices 1 and 3 tell the second number."""
    found = run(f"matrices_{matrix}", False)
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2 + matrix % 2
        assert found[lane] == 64 * matrix + 8 * row + column
        assert found[32 + lane] == 64 * matrix + 8 * column + row  # of the transposed


@pytest.mark.parametrize("part", range(4))
def test_product_of_16_bit_numbers(part):
    found = run(f"product_{part}", False)
    for lane in range(32):
        i, j = lane // 4 + part // 2 * 8, lane % 4 * 2 + part % 2
        wanted = 1 + sum((i + k / 4) * (k - 2 * j) for k in range(16))
        assert found[lane] == found[32 + lane] == wanted


@pytest.mark.parametrize("kernel", ["missing_barrier", "order_of_blocks"])
def test_orders_disagree_where_order_matters(kernel):
    def results(bug):
        return [str(run(kernel, bug, order)) for order in range(3)]

    assert len(set(results(True))) > 1
    assert len(set(results(False))) == 1


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("kernel", RACES)
def test_race_is_found_and_located(kernel, order):
    found = run(kernel, True, order, "races")
    assert isinstance(found, str)
    if order == 0:  # else the other access may come first
        assert re.search(RACES[kernel], found, re.DOTALL), found
    assert found.startswith("data race in ")
    assert isinstance(run(kernel, False, order, "races"), list)


@pytest.mark.faults
def test_kernels_have_no_races():
    # Small maps are enough for all kernels: those of many pixels repeat what their blocks do.
    cases = "emulator and matches_reference and (float32 or float16) and not bfloat16 and not many"
    done = run_pytest("tests/ops", "-k", cases, DENSESIAM_EMULATOR="races")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


SANITIZED = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.run_fault.restype = ctypes.c_char_p
print(library.run_fault(sys.argv[2].encode(), sys.argv[3] == "bug", (ctypes.c_float * 64)()))
"""


def run_python(*command, **environment):
    """A Python process of its own: a process takes one build of the emulator."""
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def run_pytest(*arguments, **environment):
    return run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, **environment)


@cache
def sanitizers():
    """The environment that loads the sanitizers' runtimes first."""
    from torch.utils.cpp_extension import get_cxx_compiler

    runtimes = [
        subprocess.run(
            [get_cxx_compiler(), f"-print-file-name=lib{name}.so"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    return {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "DENSESIAM_EMULATOR": "sanitized",
    }


@pytest.mark.faults
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("beyond_shared", "heap-buffer-overflow"),
        ("beyond_global", "heap-buffer-overflow"),
        ("shift_too_far", "runtime error: shift exponent 32 is too large"),
        ("signed_overflow", "runtime error: signed integer overflow"),
    ],
)
def test_sanitizer_sees(kernel, message):
    path = build_faults("sanitized")
    wrong = run_python("-c", SANITIZED, path, kernel, "bug", **sanitizers())
    assert message in wrong.stderr, wrong.stderr
    right = run_python("-c", SANITIZED, path, kernel, "no bug", **sanitizers())
    assert right.stdout.strip() == "None", right.stderr


@pytest.mark.faults
def test_kernels_stay_inside_their_memory_and_the_language():
    # Vector alignment is the emulator's own check.
    build_emulator("sanitized")  # here, where the compiler itself runs without the sanitizer
    done = run_pytest("tests/csrc/cuda/test_kernels.py", "-k", "order or dropped", **sanitizers())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.faults
def test_every_line_of_the_kernels_runs():
    lines = coverage.measure(coverage.TESTS)
    report = coverage.render(lines)
    assert len(lines) > 20, report
    for path, counts in lines.items():
        missed = sum(count == 0 for count in counts.values())
        # Device code wholly; of host code what the README says.
        assert missed <= (0 if path.endswith(".cuh") else 2), report


def test_a_build_serves_the_tree_wherever_it_is_copied_to(tmp_path, monkeypatch):
    """As a kit is: compiled anew there, it would take a rehearsal minutes."""
    for folder in ("csrc", "tests/emulator"):
        shutil.copytree(ROOT / folder, tmp_path / folder)

    def files(root):
        spec = importlib.util.spec_from_file_location("of_a_tree", root / "tests/emulator/build.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = []
        monkeypatch.setattr(module, "_make", lambda target, _: made.append(target.name) or target)
        module.build_emulator()
        return sorted(made)

    assert files(ROOT) == files(tmp_path)
