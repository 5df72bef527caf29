"""Which lines of the CUDA kernels the tests run: ``python -m tests.emulator.coverage``.

Compiles the emulator with gcov's counters, runs the op suite and the kernels' own tests on it, and
prints a line for each file: how many lines there are, how many ran, and which did not. A line of a
template counts as run if any of its instantiations ran it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path

from tests.emulator.build import BUILD, ROOT, build_emulator

# The suite's other tests call the same kernels with the same cases.
TESTS = [
    *("tests/ops", "tests/csrc/cuda/test_kernels.py", "-k"),
    "emulator and (matches_reference or strided or empty or first_nan or exceptional)"
    " or dropped or counts or refused or whole_packs or shared_memory or several_steps"
    " or many_classes",
]
FOLDER = "csrc/cuda/"
# How all kernels reach memory and are launched: not their own code.
LEFT_OUT = ("csrc/cuda/device/access.h", "csrc/cuda/device/launch.h")


def measure(tests: list[str]) -> dict[str, Counter[int]]:
    """Run tests on the emulator.

    Args:
        tests: pytest's arguments.

    Returns:
        For each file of the kernels, by its path in the repository, how often each line ran.

    Raises:
        RuntimeError: a test failed.
    """
    build_emulator("coverage")
    with tempfile.TemporaryDirectory() as folder:
        # gcov keeps counts beside the objects, across runs; here each run counts for itself.
        environment = {
            "DENSESIAM_EMULATOR": "coverage",
            "GCOV_PREFIX": folder,
            "GCOV_PREFIX_STRIP": str(len(BUILD.parts) - 1),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"the tests failed:\n{done.stdout}{done.stderr}")
        return _collect(Path(folder))


def _collect(folder: Path) -> dict[str, Counter[int]]:
    lines: dict[str, Counter[int]] = defaultdict(Counter)
    for counts in sorted(folder.rglob("*.gcda")):
        shutil.copy(BUILD / f"{counts.stem}.gcno", counts.parent)
        report = subprocess.run(
            ["gcov", "--json-format", "--stdout", counts.name],
            cwd=counts.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        for file in json.loads(report.stdout)["files"]:
            # Another tree may have compiled it: a build serves those that it is copied to.
            _, found, name = os.path.normpath(file["file"]).rpartition(FOLDER)
            path = found + name
            if found and (ROOT / path).exists() and path not in LEFT_OUT:
                for line in file["lines"]:
                    lines[path][line["line_number"]] += line["count"]
    return dict(sorted(lines.items()))


def render(lines: dict[str, Counter[int]]) -> str:
    """A table with a row for each file, and one for all."""
    rows = [f"{'file':40} {'lines':>6} {'run':>6} {'share':>7}  not run"]
    for path, counts in lines.items():
        missed = ", ".join(str(line) for line in sorted(counts) if not counts[line])
        rows.append(_row(path, counts.values()) + f"  {missed}")
    rows.append(_row("all", [count for counts in lines.values() for count in counts.values()]))
    return "\n".join(rows)


def _row(name: str, counts: Collection[int]) -> str:
    run = sum(count > 0 for count in counts)
    return f"{name:40} {len(counts):6} {run:6} {run / len(counts):7.1%}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table; other tests than the usual ones may be given as pytest's arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    print(render(measure(arguments or TESTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
