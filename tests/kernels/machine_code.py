"""Triton's kernels as machine code, executed on the CPU: their results and their counts.

    python -m tests.kernels.machine_code results ARCHITECTURE TYPE [OPERATION ...]
    python -m tests.kernels.machine_code exceptional ARCHITECTURE
    python -m tests.kernels.machine_code counts ARCHITECTURE CASE

Of a process in which Triton compiles: that of the tests interprets. It ends with an error where a
result is not the reference's, or a count is worse than in ``benchmarks/roofline_triton.json``.
"""

import sys

import torch

from benchmarks import roofline
from benchmarks.processor import PROCESSORS
from tests.csrc.cuda.calls import CALLS, assert_right, computed
from tests.emulator.machine_code import on_triton_machine_code
from tests.ops.exceptional import assert_exceptional_numbers_are_right
from tests.ops.suite import LAYOUTS


def check_results(architecture, dtype, *operations):
    """Hold operations to the reference, in both layouts."""
    dtype = getattr(torch, dtype)
    for op in operations or CALLS:
        for channels, channels_last in ((8, True), (27, False), (27, True)):
            with on_triton_machine_code(architecture):
                values = computed(op, dtype, channels, channels_last)
            assert_right(values, op, dtype, channels, channels_last)
            print("right:", architecture, dtype, op, channels, channels_last)


def check_exceptional_numbers(architecture):
    """Hold region_pool to the reference where tensor cores come to their limits."""
    for layout in LAYOUTS:
        with on_triton_machine_code(architecture):
            assert_exceptional_numbers_are_right(layout, "cpu")
        print("right:", architecture, layout)


def check_counts(architecture, case):
    """Count anew, and compare with what is committed."""
    kept = roofline.read_baseline("triton")[architecture]
    processors = {architecture: PROCESSORS[architecture]}
    op = case.split(",")[0]
    for _, name, row in roofline.measure(processors, [op], only=case, backend="triton"):
        worse = roofline.worse(row, kept[str(name)])
        assert worse == [], (name, worse)
        print("as committed:", architecture, name)


if __name__ == "__main__":
    commands = {
        "results": check_results,
        "exceptional": check_exceptional_numbers,
        "counts": check_counts,
    }
    commands[sys.argv[1]](*sys.argv[2:])
