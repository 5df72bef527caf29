"""The op suite on the CPU kernels in a process of its own: another build, or instruction set.

    python -m pytest -p tests.csrc.cpu.suite --cpu-library PATH tests/ops -k cpu

As a plugin of pytest it puts that library in the place of the installed one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from densesiam import _libraries

ROOT = Path(__file__).parents[3]

# What no kernel decides: what Python checks, and how torch traces.
ELSEWHERE = ("errors", "opcheck", "compile", "names_values_out_of_range")


def run_suite(
    library: Path | None, environment: dict[str, str], without: Sequence[str] = ELSEWHERE
) -> str:
    """Run tests/ops on the backend ``cpu``, and tests/csrc/cpu/test_kernels.py.

    Args:
        library: in place of the installed one, if any.
        environment: variables to add.
        without: words in the names of tests that are left out.

    Returns:
        What pytest printed.

    Raises:
        AssertionError: a test fails, none runs, or the process dies.
    """
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-p", __name__]
    command += ["-m", "not slow", "-k", " and not ".join(["cpu", *without]), "-x"]
    command += [] if library is None else [f"--cpu-library={library}"]
    done = subprocess.run(
        [*command, "tests/ops", "tests/csrc/cpu/test_kernels.py"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-library", type=Path, help="CPU kernels in place of the installed ones")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before anything imports the operations, which load the library."""
    if (path := early_config.known_args_namespace.cpu_library) is not None:
        find = _libraries.find
        _libraries.find = lambda library: path if library == "_cpu" else find(library)


def pytest_report_header() -> str:
    from densesiam.ops import _backends

    if (reason := _backends.missing("cpu")) is not None:
        raise pytest.UsageError(f"the CPU kernels cannot be tested: {reason}")
    return f"CPU kernels: {_libraries.cpu_capability()}"
