"""Every kernel once, forward and backward, for tools that look into launches.

    python -m tools.gpu_kit.launches [--batch 2] [--backends cuda triton]

What is to be looked at lies between the start and the stop of CUDA's profiler.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks import device, ops
from benchmarks.problem import Problem, Setting
from densesiam.ops import use_backend
from densesiam.ops._backends import kernels, missing


def problems(batch: int, side: int | None) -> Iterator[Problem]:
    """The method's own shapes in both layouts, in float32 and a half type."""
    for module in ops.MODULES.values():
        for shape in (shape for shape in module.SHAPES if shape.own):
            if side:
                shape = replace(shape, height=side, width=side, size=min(shape.size, side))
            for dtype in (torch.float32, torch.float16):
                for channels_last in (False, True):
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
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"])
    parser.add_argument("--warm", action="store_true", help="once before, unseen: no compilation")
    options = parser.parse_args()
    for backend in options.backends:
        if missing(backend) is not None:
            print(f"{backend}: {missing(backend)}", flush=True)
            continue
        for problem in problems(options.batch, options.side):
            if problem.op not in kernels(backend):
                continue
            inputs = problem.make()
            with use_backend(backend):
                if options.warm:
                    launch(problem, inputs)
                if device.gpu:
                    device.gpu.synchronize()
                    device.gpu.profiler.start()
                launch(problem, inputs)
                if device.gpu:
                    device.gpu.synchronize()
                    device.gpu.profiler.stop()
            print(f"{backend} {problem.op} {problem.shape} {inputs[0].dtype}", flush=True)


if __name__ == "__main__":
    main()
