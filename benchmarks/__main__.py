"""Every operation side by side with its peers and its ceiling, forward and backward, in one run.

    python -m benchmarks            the method's own shapes, both layouts, compiled peers
    python -m benchmarks --quick    the same at a small batch, nothing compiled; under two minutes
    python -m benchmarks --full     also other shapes, types, scaling, whole training steps
    python -m benchmarks compare A B      what became slower from one result to the other
    python -m benchmarks report RESULT    tables and a page from a result
    python -m benchmarks roofline         what the CUDA kernels do, and how near GPUs' roof that is
    python -m benchmarks ceilings         what this device reaches: copies and matrix products
    python -m benchmarks host             what a call takes beside its kernel
    python -m benchmarks pipeline         what an image costs: views, steps, predictions

docs/benchmarks.md explains what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import (
    ceilings,
    compare,
    device,
    host,
    ops,
    report,
    roofline,
    suite,
    training_step,
)
from benchmarks.machine import describe_machine
from benchmarks.results import Results, Row
from benchmarks.run import BACKENDS, Case, measure
from benchmarks.terminal import header, render

FEWER = 5  # rounds
HOST_ROUNDS = 4  # times as many as of anything else: they are short


def _pipeline(arguments: Sequence[str]) -> int:
    from benchmarks import pipeline  # it alone needs torchvision and Pillow

    return pipeline.main(arguments)


COMMANDS = {
    "compare": compare.main,
    "report": report.main,
    "roofline": roofline.main,
    "ceilings": ceilings.main,
    "host": host.main,
    "pipeline": _pipeline,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the measurement.

    Returns:
        0; 1 where one of our results is wrong, or something became slower.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    return run(arguments)


def run(arguments: Sequence[str]) -> int:
    """Measure, print a table, write the files."""
    options = _parser().parse_args(arguments)
    groups = options.groups or (list(suite.GROUPS) if options.full else ["own"])
    batch = options.batch or (64 if device.gpu else 2 if options.quick else 8)
    rounds = options.rounds or (5 if options.quick else 9)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    results = Results(describe_machine(), " ".join(["python -m benchmarks", *arguments]), [])
    print("\n".join(f"{key}: {value}" for key, value in results.machine.items()))
    print("\n" + header())
    deadline = time.monotonic() + 60 * (options.minutes or math.inf)
    left_out = 0
    for group in groups:
        for case in suite.cases(options.ops, [group], batch, options.quick, options.shapes):
            if options.no_compile:
                case = replace(case, compiled=False)
            if time.monotonic() > deadline:
                left_out += 1
                continue
            row = measure(case, _rounds(case, rounds), options.backends)
            results.rows.append(row)
            print(render(row), flush=True)
            _save(results, options)  # after each row: a long run that is cut short loses nothing
        called = [name for name in options.ops if name in ops.MODULES]
        if group == "own" and called and time.monotonic() <= deadline:
            results.host.update(host.measure(called, HOST_ROUNDS * rounds))
            print(f"\n{host.render(results.host)}", flush=True)
            _save(results, options)
        if group == "own" and options.full and time.monotonic() <= deadline:
            results.steps.update(training_step.measure(min(rounds, FEWER)))
            print(training_step.render(results.steps), flush=True)
            _save(results, options)
    if left_out:
        print(f"\n{left_out} cases were left out when {options.minutes:g} minutes were over")
    if options.output:
        results.write_csv(options.output / "results.csv")
        report.write_report(results, options.output / "index.html")
        print(f"\nwritten to {options.output}: results.json, results.csv, index.html")
    elif options.json:
        print(f"\nwritten to {options.json}")
    return _verdict(results.rows)


def _rounds(case: Case, most: int) -> int:
    """All rounds for the operations' own shapes, which the goals are about; fewer for the rest."""
    return most if case.group == "own" and case.problem.op in ops.MODULES else min(most, FEWER)


def _verdict(rows: Sequence[Row]) -> int:
    refused = [(row, name, error) for row in rows for name, error in row.refused.items()]
    for row, name, error in refused:
        print(f"{name} is {error} in {row.op} ({row.shape}), so it was not timed", file=sys.stderr)
    return 1 if refused else 0


def _save(results: Results, options: argparse.Namespace) -> None:
    if options.output:
        results.write(options.output / "results.json")
    if options.json:
        results.write(options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_true", help="small batch, no torch.compile")
    modes.add_argument("--full", action="store_true", help="every part of the suite")
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile")
    every = list(suite.MODULES)
    parser.add_argument(
        "--ops",
        nargs="+",
        choices=every,
        default=every,
        metavar="OP",
        help=f"operations and composites to measure: {', '.join(every)}",
    )
    parser.add_argument(
        "--groups",
        nargs="+",
        choices=suite.GROUPS,
        metavar="GROUP",
        help="parts of the suite: "
        + "; ".join(f"{name}, {what}" for name, what in suite.GROUPS.items()),
    )
    names = suite.shape_names()
    parser.add_argument(
        "--shapes", nargs="+", choices=names, metavar="NAME", help="only shapes of these names"
    )
    parser.add_argument(
        "--backends", nargs="+", choices=(*BACKENDS, "reference"), default=list(BACKENDS)
    )
    parser.add_argument("--batch", type=_positive, help="images (default 8, quick 2, GPU 64)")
    parser.add_argument("--rounds", type=_positive, help="measured rounds (default 9, quick 5)")
    parser.add_argument(
        "--minutes",
        type=float,
        help="start no further case after so many, and say what is left out",
    )
    parser.add_argument("--json", type=Path, help="write machine, versions and all numbers there")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write JSON, CSV and a page there"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
