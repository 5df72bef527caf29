"""``python -m benchmarks host``: what a call takes beside its kernel.

Every operation on two maps of 4 x 6 x 6, by one thread: next to nothing is to be computed, and
what is left is Python, checks and the dispatcher. The yardstick is torchvision's ``roi_align``,
whose Python does little more than to call the dispatcher. The clock is the processor time of this
process: whatever else runs on the machine is not in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import device, ops
from benchmarks.machine import describe_machine
from benchmarks.measure import WARM_UP, Call, Timing, captured, time_side_by_side
from benchmarks.problem import Problem, Setting

YARDSTICK = "torchvision roi_align"
BATCH, CHANNELS, SIDE, SIZE, CLASSES = 2, 4, 6, 3, 3
CALLS = 10  # in a row, each time the clock is read
ONE_MAP = ("overlap_sample", "region_pool", "roi_align", "label_map")
FORWARD_ONE_MAP, FORWARD, BOTH = 1.5, 2.0, 1.0
"""Goals: at the most so many times the yardstick's."""

Times = dict[str, dict[str, Any]]
_Pair = tuple[Callable[[], Any], Callable[[], Any] | None]


def measure(names: Sequence[str], rounds: int) -> Times:
    """Time of a call of each operation on the backend that serves it, all of them in turn.

    Returns:
        By operation, with `YARDSTICK` first: ``forward`` (without gradients) and ``both`` (forward
        and backward, where there is one), median and quartiles of the rounds in microseconds. On a
        GPU ``graph`` too, where there can be one: what the device takes for the longer of them.
    """
    calls = {YARDSTICK: _yardstick()} | {name: _calls(_problem(name)) for name in names}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = _time(calls, rounds)
    finally:
        torch.set_num_threads(threads)
    if device.gpu:
        graphs = {}
        for name, (forward, both) in calls.items():
            with suppress(RuntimeError):  # it waits for the device
                graphs[name] = _captured(both or forward)
        for name, (_, timing) in time_side_by_side(graphs, rounds, 1).items():
            times[name]["graph"] = {key: 1e3 * value for key, value in vars(timing).items()}
    return times


def _problem(name: str) -> Problem:
    """The operation's own shape with its kind kept and its size gone."""
    module = ops.MODULES[name]
    shape = module.SCALED or module.SHAPES[0]
    size, classes = min(shape.size, SIZE), min(shape.classes, CLASSES)
    tiny = replace(shape, channels=CHANNELS, height=SIDE, width=SIDE, size=size, classes=classes)
    return module.problem(tiny, Setting(BATCH))


def _yardstick() -> _Pair:
    from torchvision.ops import roi_align

    problem = _problem("roi_align")
    return _calls(replace(problem, ours=lambda v, boxes: roi_align(v, boxes, SIZE, aligned=True)))


def _calls(problem: Problem) -> _Pair:
    """Forward without gradients, and forward with backward."""
    function, inputs = problem.ours, problem.make()
    plain = [each.detach() for each in inputs]
    if not problem.differentiable:
        return lambda: function(*plain), None
    leaves = [inputs[i] for i in problem.differentiable]
    cotangent = torch.ones_like(function(*plain))
    return (
        lambda: function(*plain),
        lambda: torch.autograd.grad(function(*inputs), leaves, cotangent),
    )


def _captured(call: Callable[[], Any]) -> Call:
    return captured(Call(lambda _: call()), 1)


def _time(calls: dict[str, _Pair], rounds: int) -> Times:
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in calls}
    for number in range(-WARM_UP, rounds):
        for name, pair in calls.items():
            for direction, call in zip(("forward", "both"), pair, strict=True):
                if call is None:
                    continue
                with torch.set_grad_enabled(direction == "both"):
                    start = time.process_time()
                    for _ in range(CALLS):
                        call()
                    end = time.process_time()
                if device.gpu:
                    device.gpu.synchronize()
                if number >= 0:
                    microseconds = 1e6 * (end - start) / CALLS
                    samples[name].setdefault(direction, []).append(microseconds)
    return {
        name: {direction: vars(Timing.of(each)) for direction, each in found.items()}
        for name, found in samples.items()
    }


COLUMNS = {
    "operation": "",
    "forward, us": "without gradients; median and quartiles of the rounds",
    "of roi_align": "times what torchvision's roi_align takes",
    "with backward, us": "forward and backward",
    "of its": "times what torchvision's roi_align takes with its backward",
    "graph, us": "on a GPU: what the device takes for the longer of them",
    "goals": "at the most so many times what torchvision's takes",
}


def lines(times: Times) -> list[list[str]]:
    """The table's cells: one of each of `COLUMNS`."""
    return [_line(name, own, times[YARDSTICK]) for name, own in times.items()]


def _line(name: str, own: dict[str, Any], yardstick: dict[str, Any]) -> list[str]:
    cells, missed = [name], []
    most = {"forward": FORWARD_ONE_MAP if name in ONE_MAP else FORWARD, "both": BOTH}
    for direction, limit in most.items():
        cells.append(_microseconds(own.get(direction)))
        if name == YARDSTICK or direction not in own:
            cells.append("-")
            continue
        ratio = own[direction]["median"] / yardstick[direction]["median"]
        cells.append(f"{ratio:.2f}x")
        if ratio > limit:
            missed.append(f"{ratio:.2f}x, asked {limit:g}x")
    verdict = "-" if name == YARDSTICK else "; ".join(missed) or "met"
    return [*cells, _microseconds(own.get("graph")), verdict]


def _microseconds(timing: dict[str, float] | None) -> str:
    if timing is None:
        return "-"
    return f"{timing['median']:.0f} ({timing['low']:.0f}-{timing['high']:.0f})"


def render(times: Times) -> str:
    """The table as text."""
    rows = [list(COLUMNS), *lines(times)]
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return "\n".join(
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks host",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=60, help="measured rounds (default 60)")
    parser.add_argument("--json", type=Path, help="write machine and numbers there")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    times = measure(list(ops.MODULES), options.rounds)
    print(render(times))
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine(), "host": times}))
    return 0
