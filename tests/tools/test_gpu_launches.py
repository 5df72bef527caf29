"""What a visit launches for the tools, and what they measured beside what was counted."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import device, ops, roofline
from tests import stand_in
from tests.emulator import emulated
from tests.emulator.machine_code import observing
from tools.gpu_kit import beside, launches

ROOT = Path(__file__).parents[2]
CASE = "region_pool, 27 regions, contiguous, float32, forward"
COUNTED = {
    "microseconds": 10.0,
    "share": 0.5,
    "roof": 5.0,
    "launches": 2,
    "clears": 1,
    "instructions": 3.0,
    "sectors": 1.25,
    "registers": 40,
}


def launch(kernel="void densesiam::region_pool_forward<32>(T1)", **measured):
    return {"of": CASE, "bytes": 1000, "kernel": kernel} | measured


def test_what_was_measured_stands_beside_what_was_counted():
    profiled = {
        "nanoseconds": 4000.0,
        "registers": 38.0,
        "warp instructions": 50.0,
        "bytes read": 300.0,
        "bytes written": 400.0,
    }
    fill = launch("at::FillFunctor<float>", **profiled | {"registers": 99.0})
    elsewhere = launch(of="label_map, evaluation, contiguous, float32, forward")
    every = [launch(**profiled), launch(**profiled | {"registers": 41.0}), fill, elsewhere]
    (row,) = beside.compared(every, {CASE: COUNTED})
    assert row == {
        "of": CASE,
        "launches": (2, 2),
        "fills": (1, 1),
        "microseconds": (10.0, 12.0),
        "share": (0.5, pytest.approx(5 / 12)),
        "registers": (40, 41.0),
        "instructions": (3.0, 32 * 100 / 1000),  # of a thread; the fill's are none of ours
        "bytes": (1.25, 1.4),
    }


def test_before_and_after_are_of_cases_that_both_know():
    other = CASE.replace("float32", "float16")
    before = [launch(nanoseconds=6000.0), launch("fill", nanoseconds=3000.0)]
    before += [launch(of=other, bytes=500, nanoseconds=1.0), launch(of="gone", nanoseconds=1.0)]
    after = [launch(nanoseconds=3000.0), launch(of=other, nanoseconds=1.0)]
    after += [launch(of="new", nanoseconds=1.0)]
    (row,) = beside.before_and_after(before, after)
    assert row == {"of": CASE, "launches": (2, 1), "microseconds": (9.0, 3.0), "times": 3.0}
    (untold,) = beside.before_and_after(before[:1], [launch(nanoseconds=None)])
    assert untold["microseconds"] == (6.0, None)
    assert untold["times"] is None


def test_what_a_tool_does_not_tell_is_not_made_up():
    (row,) = beside.compared([launch(nanoseconds=None), launch()], {CASE: COUNTED})
    for name in ("microseconds", "share", "registers", "instructions", "bytes"):
        assert row[name][1] is None
    assert row["launches"] == (2, 2)


@pytest.mark.parametrize(
    ("gpus", "there"),
    [
        ([{"capability": "9.0"}], True),
        ([{"capability": "7.5"}], False),
        ([], False),
        ("cannot be told: RuntimeError", False),
        ([{"name": "of an earlier report"}], False),
    ],
)
def test_counts_are_of_the_gpus_own_architecture(gpus, there):
    assert bool(beside.counted(gpus)) == there


def test_the_cases_are_those_that_were_counted():
    """By name: else nothing would stand beside anything."""
    named = {
        f"{case}, {direction}"
        for case, problem in launches.problems(1, None)
        for direction in ("forward", "backward")
    }
    assert {str(case) for case, *_ in roofline.cases(batch=1)} <= named


def test_a_launch_as_torchs_profiler_tells_of_it():
    event = {
        "ph": "X",
        "cat": "kernel",
        "name": "void densesiam::label_map_pixels<4, float>(float const*)",
        "ts": 5.0,
        "dur": 2.5,
        "args": {
            "registers per thread": 40,
            "shared memory": 1024,
            "grid": [8, 2, 1],
            "block": [32, 4, 1],
            "est. achieved occupancy %": 62,
        },
    }
    assert launches.launched(event) == {
        "kernel": event["name"],
        "nanoseconds": 2500.0,
        "blocks": 16,
        "threads a block": 128,
        "registers": 40,
        "shared memory": 1024,
        "% of warps": 62,
    }
    memory = {"cat": "gpu_memset", "name": "Memset (Device)", "ts": 1.0, "dur": 1.0, "args": {}}
    assert launches.launched(memory)["blocks"] is None


@pytest.fixture
def small(monkeypatch):
    """Few pixels, and the emulator in the GPU's place."""
    for module in ops.MODULES.values():
        shapes = [replace(s, height=5, width=6, size=min(s.size, 4)) for s in module.SHAPES]
        monkeypatch.setattr(module, "SHAPES", tuple(shapes[:1]))
    monkeypatch.setattr(device, "gpu", stand_in.StandIn())
    monkeypatch.setattr(device, "trace", stand_in.trace)
    monkeypatch.setattr(launches, "use_backend", lambda _: emulated())
    monkeypatch.setattr(launches, "OWN", (torch.float32,))


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["launches", *map(str, arguments)])
    launches.main()


def test_a_table_of_launches(small, monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--warm", "--table", tmp_path / "table.json")
    rows = json.loads((tmp_path / "table.json").read_text())
    assert {row["of"].split(", ")[0] for row in rows} == set(ops.MODULES)
    assert {row["of"].rsplit(", ", 1)[1] for row in rows} == {"forward", "backward"}
    assert all(beside.OURS in row["kernel"] for row in rows)  # none of what makes the inputs
    assert all(row["bytes"] > 0 and row["blocks"] > 0 for row in rows)
    told = [json.loads(line.split(": ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert [each["of"] for each in told] == list(dict.fromkeys(row["of"] for row in rows))


def test_what_the_tools_are_to_see_is_between_start_and_stop(small, monkeypatch, capsys):
    seen = []
    profiler = device.gpu.profiler
    for name in ("start", "stop"):
        monkeypatch.setattr(profiler, name, lambda name=name: seen.append(name))
    monkeypatch.setattr(stand_in.StandIn, "_sleep", lambda self, cycles: seen.append("spin"))
    run(monkeypatch)
    told = capsys.readouterr().out.count("launched: ")
    assert seen == ["start", "spin", "stop"] * told
    assert told > len(ops.MODULES)


def test_what_there_is_no_time_for_is_said(small, monkeypatch, capsys):
    run(monkeypatch, "--seconds", -1)
    cases = len(list(launches.problems(1, None)))
    assert capsys.readouterr().out == f"left out: {cases}, for lack of time\n"


def test_the_sanitizer_meets_every_kernel(monkeypatch):
    """Each kernel that the sources have is launched; none runs, what they would do is elsewhere."""
    found = {
        name
        for path in (ROOT / "csrc" / "cuda").rglob("*.cuh")
        for name in re.findall(
            r"__global__ void(?:\s+__launch_bounds__\((?:[^()]|\([^()]*\))*\))?\s+(\w+)\(",
            path.read_text(),
        )
    }
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").rglob("*.cuh"))
    assert len(found) == sources.count("__global__")
    met = set()

    def observe(name, _):
        met.add(name.split("<")[0])
        return True

    with observing(observe), emulated():
        for _, problem in launches.problems(2, 14, every=True):
            inputs = problem.make()
            for _, _, call in launches.directions(problem, inputs):
                call()
    assert found - met == set()
