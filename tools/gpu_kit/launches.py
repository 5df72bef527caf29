"""Every kernel, forward and backward, for tools that look into launches; or a table of them.

    python -m tools.gpu_kit.launches [--batch 2] [--backend cuda] [--seconds 60]
    python -m tools.gpu_kit.launches --every --side 14       # each shape, in each type
    python -m tools.gpu_kit.launches --table FILE            # without any tool: torch's profiler

What is to be looked at lies between the start and the stop of CUDA's profiler, and a line that
begins with ``launched:`` says what it was: a case of ``benchmarks/roofline.json``, and the bytes
that it must move. Such tools tell what they saw at the end, and one that is ended tells nothing:
so no other problem is begun when the seconds are over.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import device, ops
from benchmarks.problem import Problem, Setting
from densesiam.ops import use_backend
from densesiam.ops._backends import kernels

OWN = (torch.float16, torch.float32)
EVERY = (*OWN, torch.bfloat16, torch.float64)


def problems(batch: int, side: int | None, every: bool = False) -> Iterator[tuple[str, Problem]]:
    """Cases without their direction: the method's own shapes in a half type and in float32.

    Args:
        batch: images.
        side: of the maps, at most.
        every: also each other shape of an operation, and every type.
    """
    for dtype, channels_last in product(EVERY if every else OWN, (True, False)):
        for op, module in ops.MODULES.items():
            for shape in (shape for shape in module.SHAPES if shape.own or every):
                setting = Setting(batch, dtype, channels_last)
                name = str(dtype).removeprefix("torch.")
                if side:
                    height, width = min(shape.height, side), min(shape.width, side)
                    shape = replace(shape, height=height, width=width, size=min(shape.size, side))
                yield (
                    f"{op}, {shape.name}, {setting.layout}, {name}",
                    module.problem(shape, setting),
                )


def directions(
    problem: Problem, inputs: list[torch.Tensor]
) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Forward, then backward: mandatory bytes, and the call, to be made before going on."""
    results: list[torch.Tensor] = []
    yield "forward", problem.forward_bytes, lambda: results.append(problem.ours(*inputs))
    if problem.differentiable:
        leaves = [inputs[i] for i in problem.differentiable]
        ones = torch.ones_like(results[0])  # a launch that is none of ours
        yield (
            "backward",
            problem.backward_bytes,
            lambda: torch.autograd.grad(results[0], leaves, ones),
        )


def profiled(call: Callable[[], object]) -> None:
    """The call, for the tool that runs this program."""
    device.gpu.synchronize()
    device.gpu.profiler.start()
    device.gpu._sleep(1)  # parts these launches from the last ones
    call()
    device.gpu.synchronize()
    device.gpu.profiler.stop()


def launched(event: dict[str, Any]) -> dict[str, Any]:
    """A launch as torch's profiler tells of it."""
    told = event.get("args", {})
    return {
        "kernel": event["name"][:300],
        "nanoseconds": 1e3 * event["dur"],
        "blocks": math.prod(told["grid"]) if "grid" in told else None,
        "threads a block": math.prod(told["block"]) if "block" in told else None,
        "registers": told.get("registers per thread"),
        "shared memory": told.get("shared memory"),
        "% of warps": told.get("est. achieved occupancy %"),
    }


def main() -> None:
    """Launch them all."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_kit.launches")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, help="of the maps, at most")
    parser.add_argument("--every", action="store_true", help="also other shapes, in every type")
    parser.add_argument("--backend", choices=("cuda", "triton"), default="cuda")
    parser.add_argument("--warm", action="store_true", help="once before, unseen: no compilation")
    parser.add_argument("--table", type=Path, help="file to write launches to, as JSON")
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    table: list[dict[str, Any]] = []
    left_out = 0
    with use_backend(options.backend):
        for case, problem in problems(options.batch, options.side, options.every):
            if problem.op not in kernels(options.backend):
                continue
            if time.monotonic() > end:
                left_out += 1
                continue
            inputs = problem.make()
            if options.warm:
                for _, _, call in directions(problem, inputs):
                    call()
            for direction, size, call in directions(problem, inputs):
                what = {"of": f"{case}, {direction}", "bytes": size}
                if options.table:
                    table += [what | launched(event) for event in device.trace(call)]
                else:
                    profiled(call)
                print(f"launched: {json.dumps(what)}", flush=True)
            if options.table:  # whole at every moment: the program may be ended
                unfinished = options.table.with_suffix(".part")
                unfinished.write_text(json.dumps(table))
                unfinished.replace(options.table)
    if left_out:
        print(f"left out: {left_out}, for lack of time", flush=True)


if __name__ == "__main__":
    main()
