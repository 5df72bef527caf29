"""The command: ``python -m benchmarks [--quick] [--ops NAME ...] [--json FILE]``.

Each row is one operation at one shape, forward and backward. Per backend: milliseconds (median and
quartiles), how many times faster than the library composition run eagerly and compiled, the share
of the ceiling (torch.clone of the bytes that the operation cannot avoid), and the extra memory held
beyond inputs, outputs and gradients. Everything in a row is measured interleaved, in one run.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import (
    INPUT_SETS,
    Timing,
    clone_of,
    extra_memory,
    forward_backward,
    time_side_by_side,
)
from benchmarks.ops import MODULES
from benchmarks.ops.inputs import DEVICE
from benchmarks.problem import Problem
from densesiam import __version__, ops
from densesiam._libraries import build_info
from densesiam.ops._backends import kernels, missing

BACKENDS = ("cuda", "triton") if DEVICE.type == "cuda" else ("cpu",)


def main() -> None:
    """Parse the command line, measure, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small batch, no torch.compile")
    parser.add_argument("--ops", nargs="+", choices=MODULES, default=list(MODULES), metavar="OP")
    parser.add_argument("--batch", type=int, help="images a batch (default 8, quick 2, GPU 64)")
    parser.add_argument("--rounds", type=int, help="measured rounds (default 20, quick 7)")
    parser.add_argument("--json", type=Path, help="write machine, versions and all numbers there")
    args = parser.parse_args()
    batch = args.batch or (64 if DEVICE.type == "cuda" else 2 if args.quick else 8)
    rounds = args.rounds or (7 if args.quick else 20)

    torch.manual_seed(0)
    machine = describe_machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    print("\n" + header())
    rows = []
    for name in args.ops:
        for channels_last in (False, True):
            for problem in MODULES[name].problems(batch, channels_last):
                row = run(problem, channels_last, rounds, compiled=not args.quick)
                rows.append(row)
                print(render(row), flush=True)
                if args.json:  # after each row: a long run that is cut short loses nothing
                    report = {"machine": machine, "command": " ".join(sys.argv[1:]), "rows": rows}
                    args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.json:
        print(f"\nwritten to {args.json}")


def describe_machine() -> dict[str, Any]:
    """What the numbers belong to."""
    info = build_info() or {}
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "densesiam": f"{__version__} ({commit.stdout.strip() or 'no commit'})",
        "torch": torch.__version__,
        "compiler": info.get("compiler", "none"),
        "flags": info.get("cxx_flags", "none"),
    }


def run(problem: Problem, channels_last: bool, rounds: int, compiled: bool) -> dict[str, Any]:
    """Measure one problem; refuses an operation whose result is wrong."""
    inputs = [problem.make() for _ in range(INPUT_SETS)]
    functions: dict[str, Any] = {"eager": problem.eager}
    if compiled:
        torch._dynamo.reset()
        functions["compile"] = torch.compile(problem.eager)
    for backend in BACKENDS:
        if missing(backend) is None and problem.op in kernels(backend):
            functions[backend] = on_backend(problem.ours, backend)

    # One cotangent, for each in the layout of its own result. Not ones: they make the gradient of a
    # softmax's sum vanish, and rounding errors would be compared with rounding errors.
    results = {name: f(*inputs[0]) for name, f in functions.items()}
    values = torch.randn(results["eager"].shape, device=DEVICE)
    cotangents = {name: torch.empty_like(r).copy_(values) for name, r in results.items()}

    def call(name: str, i: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        return forward_backward(
            functions[name], inputs[i], problem.differentiable, cotangents[name]
        )

    expected = call("eager", 0)
    wrong = {name: error_of(problem, call(name, 0), expected) for name in functions}
    for name, error in wrong.items():
        if error is not None and name in BACKENDS:
            raise SystemExit(
                f"{problem.op} ({problem.shape}): {name} is wrong by {error:.2e}; not timed"
            )
        if error is not None:  # a peer's fault is not ours: it has no time
            del functions[name]
    candidates: dict[str, Any] = {name: functools.partial(call, name) for name in functions}
    candidates["clone"] = clone_of(problem.mandatory_bytes, DEVICE)
    timings = time_side_by_side(candidates, rounds)
    memory = {name: extra_memory(functools.partial(call, name, 0)) for name in functions}
    return {
        "op": problem.op,
        "shape": problem.shape,
        "layout": "channels_last" if channels_last else "contiguous",
        "mandatory_bytes": problem.mandatory_bytes,
        "milliseconds": {name: vars(timing) for name, timing in timings.items()},
        "extra_bytes": memory,
        "wrong_peers": {name: e for name, e in wrong.items() if e is not None},
    }


def on_backend(function: Any, backend: str) -> Any:
    """The function with every operation on that backend."""

    def call(*args: Tensor) -> Tensor:
        with ops.use_backend(backend):
            return function(*args)

    return call


def error_of(problem: Problem, actual: Any, expected: Any) -> float | None:
    """How far a candidate's result and gradients are from the eager ones; None if they agree."""
    for a, b in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
        if a.is_floating_point():
            # Two float32 results, each with its own order of summation.
            error = (a - b).abs().max().item() / max(b.abs().max().item(), 1e-30)
            wrong = not error <= 1e-4
        else:
            error = (a != b).float().mean().item()
            wrong = error > problem.ties
        if wrong:
            return error
    return None


def header() -> str:
    """The table's head."""
    return (
        f"{'operation':19}{'shape':34}{'layout':15}{'backend':9}{'ms (quartiles)':24}"
        f"{'eager':>8}{'compile':>9}{'clone':>7}{'extra MB':>10}{'eager MB':>10}"
    )


def render(row: dict[str, Any]) -> str:
    """A table line for each backend."""
    ms = {name: Timing(**t) for name, t in row["milliseconds"].items()}
    backends = [name for name in ms if name not in ("eager", "compile", "clone")] or ["eager"]
    lines = []
    for name in backends:
        own = ms[name]
        compiled = (
            f"{ms['compile'].median / own.median:.1f}x"
            if "compile" in ms
            else "wrong"
            if "compile" in row["wrong_peers"]
            else "-"
        )
        lines.append(
            f"{row['op']:19}{row['shape']:34}{row['layout']:15}{name:9}"
            f"{f'{own.median:.2f} ({own.low:.2f}-{own.high:.2f})':24}"
            f"{ms['eager'].median / own.median:>7.1f}x{compiled:>9}"
            f"{ms['clone'].median / own.median:>7.0%}"
            f"{row['extra_bytes'][name] / 1e6:>10.1f}{row['extra_bytes']['eager'] / 1e6:>10.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
