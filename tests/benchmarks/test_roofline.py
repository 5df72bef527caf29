"""Counts of the kernels are held to what is committed, and the model to what others measured."""

import dataclasses
import shutil

import pytest
import torch

from benchmarks import roofline
from benchmarks.measure import Timing
from benchmarks.processor import PROCESSORS, need, resident_blocks, simulate
from benchmarks.published import MEASUREMENTS, predicted
from benchmarks.roofline import Row
from tests.emulator.machine_code import built_for
from tools.sass.machine import Launch
from tools.sass.program import Program, parse_line

from .synthetic import results, row

ARCHITECTURE = "sm_90"
H100 = PROCESSORS[ARCHITECTURE]
# One a kind of kernel, and quick to count.
COUNTED = (
    "overlap_sample, C5, K = 7, channels_last, float16",
    "pseudo_label_loss, 27 classes, channels_last, float32",
)
ROW = Row(10.0, 0.5, "memory", 5.0, "memory", 2, 0, 4.0, 1.0, 16, 2.0, 32, 64, 8192, 0.0, "kernel")


@pytest.mark.parametrize("case", COUNTED)
def test_counts_are_no_worse_than_committed(case):
    # For sm_80 too: of a library for sm_90 alone, ptxas makes other code.
    if not built_for("sm_80", ARCHITECTURE):
        pytest.skip(f"no CUDA library was built for sm_80 and {ARCHITECTURE}")
    kept = roofline.read_baseline()[ARCHITECTURE]
    op = case.split(",")[0]
    found = list(roofline.measure({ARCHITECTURE: H100}, [op], only=case))
    assert len(found) == 2  # forward and backward
    for _, name, counted in found:
        assert roofline.worse(counted, kept[str(name)]) == [], name


def test_what_the_process_has_left_is_no_input():
    with roofline.zeros_in_new_memory():
        for _ in range(3):
            assert not torch.empty(20_000, dtype=torch.uint8).any()
            torch.full((20_000,), 7, dtype=torch.uint8)  # and given back


def test_every_case_of_the_method_is_committed():
    wanted = {str(case) for case, *_ in roofline.cases()}
    for architecture, rows in roofline.read_baseline().items():
        assert set(rows) == wanted, architecture


def test_worse_counts_are_found():
    def against(**now):
        return roofline.worse(dataclasses.replace(ROW, **now), ROW)

    assert against() == []
    assert against(microseconds=99.0, share=0.1, registers=255) == []  # predictions are no bars
    assert against(instructions=4.1) == []  # another compiler's
    assert against(instructions=4.3) == ["instructions 4.0 -> 4.3"]
    assert against(sectors=1.1) == ["sectors 1.0 -> 1.1"]
    assert against(conflict=16.0) == ["conflict 2.0 -> 16.0"]
    assert against(launches=3) == ["launches 2 -> 3"]
    assert against(widest=4) == ["widest load 16 -> 4 bytes"]


def test_sampled_blocks_are_neighbours_all_over_the_grid():
    assert roofline.sampled_blocks(3, 4) == [0, 1, 2]
    assert roofline.sampled_blocks(1000, 4) == [617, 618, 235, 236]


def test_the_committed_table_is_printed(capsys):
    assert roofline.main(["--kept", "--arch", ARCHITECTURE, "--only", COUNTED[0]]) == 0
    printed = capsys.readouterr().out
    assert "PREDICTION" in printed
    assert printed.count(COUNTED[0]) == 2


def test_a_result_names_its_device():
    one = row(shape="64x128x80x80 -> 80x80")
    times = {"cuda": Timing(0.5, 0.4, 0.6)}  # milliseconds
    result = results([dataclasses.replace(one, milliseconds=times)])
    result.machine["device"] = "NVIDIA H200"
    found = roofline.processors_of(["sm_80", "sm_90"], result)
    assert {name: each.device for name, each in found.items()} == {
        "sm_80": "A100 80GB SXM",
        "sm_90": "H200 SXM",
    }
    times = roofline.measured_times(result)
    assert times == {("overlap_sample", "segmentation", one.layout, one.dtype): 500.0}


# Kernels whose published times the model meets: all but sum_batches, whose loads at a stride of 48
# bytes it takes to be slower than they are.
MET = [each for each in MEASUREMENTS if each.kernel != "sum_batches"]


@pytest.mark.faults  # half a minute; the three below are always tested
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
@pytest.mark.parametrize("measurement", MET, ids=lambda each: each.kernel)
def test_every_published_time_is_met(measurement):
    assert predicted(measurement) == pytest.approx(measurement.microseconds, rel=0.25)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
@pytest.mark.parametrize("kernel", ["transpose_conflicts", "transpose_padded", "sum_strides4"])
def test_published_times_are_met(kernel):
    (measurement,) = (each for each in MEASUREMENTS if each.kernel == kernel)
    assert predicted(measurement) == pytest.approx(measurement.microseconds, rel=0.25)


# -- The multiprocessor, on programs of a few lines.


def program(*lines, registers=32, shared=0):
    code = [parse_line(f"/*{16 * i:04x}*/ {line} ; /* 0x0 */") for i, line in enumerate(lines)]
    return Program("lines", 90, code, registers, shared)


def cycles(code, warps, times=1, cost=0, fresh=0):
    """Cycles of one block whose warps execute the lines so often."""
    trace = [(need(each), cost, fresh, fresh > 0) for each in code.instructions] * times
    launch = Launch((1, 1, 1), (32 * warps, 1, 1), b"")
    timing = simulate(code, launch, [[trace] * warps], H100)
    return timing.microseconds * H100.clock * 1e3


def test_dependent_instructions_wait_for_each_other():
    code = program("FFMA R0, R0, R1, R2")
    assert cycles(code, warps=1, times=100) == pytest.approx(4 * 100, abs=8)


def test_independent_instructions_of_many_warps_fill_their_unit():
    code = program("FFMA R0, R1, R2, R3")
    assert cycles(code, warps=16, times=100) == pytest.approx(16 / 4 * 100, abs=8)
    half = program("LOP3.LUT R0, R1, R2, R3, 0xc0, !PT")  # 16 lanes of a scheduler
    assert cycles(half, warps=16, times=100) == pytest.approx(2 * 16 / 4 * 100, abs=8)


def test_conflicts_take_turns():
    code = program("LDS R0, [R1]")
    assert cycles(code, warps=8, times=10, cost=32) == pytest.approx(8 * 10 * 32, abs=96)


def test_a_load_that_is_waited_for_takes_the_latency_of_memory():
    code = program("LDG.E R0, [R2.64]", "FADD R1, R0, R0")
    assert cycles(code, warps=1, cost=4, fresh=4) == pytest.approx(H100.dram, abs=64)


def test_registers_and_shared_memory_bound_the_resident_blocks():
    launch = Launch((1000, 1, 1), (256, 1, 1), b"")
    assert resident_blocks(program(registers=32), launch, H100) == 8  # 64 warps
    assert resident_blocks(program(registers=64), launch, H100) == 4
    assert resident_blocks(program(registers=255), launch, H100) == 1
    assert resident_blocks(program(registers=32, shared=48 << 10), launch, H100) == 4
