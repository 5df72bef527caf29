"""Every kernel once, forward and backward, for tools that look into launches.

    python -m tools.gpu_kit.launches [--batch 2] [--backend cuda] [--seconds 60]

What is to be looked at lies between the start and the stop of CUDA's profiler, and a line that
begins with ``launched:`` says what it was. Such tools tell what they saw at the end, and one that
is ended tells nothing: so no other problem is begun when the seconds are over.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from benchmarks import device, ops
from benchmarks.problem import Problem, Setting
from densesiam.ops import use_backend
from densesiam.ops._backends import kernels


def problems(batch: int, side: int | None) -> Iterator[Problem]:
    """The method's own shapes in a half type and in float32, each in both layouts."""
    for dtype, channels_last in product((torch.float16, torch.float32), (True, False)):
        for module in ops.MODULES.values():
            for shape in (shape for shape in module.SHAPES if shape.own):
                if side:
                    shape = replace(shape, height=side, width=side, size=min(shape.size, side))
                yield module.problem(shape, Setting(batch, dtype, channels_last))


def launch(problem: Problem, inputs: list[torch.Tensor]) -> None:
    """Forward and backward."""
    result = problem.ours(*inputs)
    if problem.differentiable:
        leaves = [inputs[i] for i in problem.differentiable]
        torch.autograd.grad(result, leaves, torch.ones_like(result))


def main() -> None:
    """Launch them all."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_kit.launches")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, help="of the maps, in place of the method's")
    parser.add_argument("--backend", choices=("cuda", "triton"), default="cuda")
    parser.add_argument("--warm", action="store_true", help="once before, unseen: no compilation")
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    with use_backend(options.backend):
        for problem in problems(options.batch, options.side):
            if problem.op not in kernels(options.backend) or time.monotonic() > end:
                continue
            inputs = problem.make()
            if options.warm:
                launch(problem, inputs)
            device.gpu.synchronize()
            device.gpu.profiler.start()
            device.gpu._sleep(1)  # parts this problem's launches from the last one's
            launch(problem, inputs)
            device.gpu.synchronize()
            device.gpu.profiler.stop()
            layout = "planar" if inputs[0].is_contiguous() else "channels last"
            dtype = str(inputs[0].dtype).removeprefix("torch.")
            print(f"launched: {problem.op} {problem.shape}, {layout}, {dtype}", flush=True)


if __name__ == "__main__":
    main()
