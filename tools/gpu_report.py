"""Everything that only a GPU can show, in one command: its tests, and the benchmarks on it.

    python -m tools.gpu_report --output gpu-report [--quick]

Runs ``pytest -m gpu``, ``python -m benchmarks`` and ``python -m densesiam.collect_env``, and writes
a folder: ``report.md`` (device, verdict, every test's outcome, the benchmarks' table),
``tests.xml``, ``benchmarks.json`` and the logs. Exit code: 0 where the tests passed and no result
was wrong, 1 where not, 2 without a GPU. There, ``--allow-cpu`` makes the report all the same, and
the report says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    Attributes:
        name: file, class and parameters, as pytest names them.
        state: "passed", "failed", "error" or "skipped".
        reason: the first line of why, if it did not pass.
    """

    name: str
    state: str
    reason: str = ""


def read_outcomes(path: Path) -> list[Outcome]:
    """The tests of a JUnit XML file.

    Raises:
        FileNotFoundError: pytest wrote none.
    """
    outcomes = []
    for case in ET.parse(path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        state, reason = "passed", ""
        for tag, said in (("skipped", "skipped"), ("failure", "failed"), ("error", "error")):
            if (element := case.find(tag)) is not None:
                state = said
                reason = (element.get("message") or "").partition("\n")[0]
        outcomes.append(Outcome(name, state, reason))
    return outcomes


def device_lines() -> list[str]:
    """Name, architecture and memory of every GPU that torch finds."""
    lines = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        lines.append(f"{device.name}, sm_{device.major}{device.minor}, {memory:.0f} GiB")
    return lines or ["none: nothing here ran on a GPU, and this report is no evidence about any"]


def render(
    outcomes: list[Outcome], devices: list[str], environment: str, benchmarks: str, verdict: str
) -> str:
    """The report as Markdown."""
    counts = Counter(outcome.state for outcome in outcomes)
    told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "none ran"
    rows = [
        f"| {outcome.state} | `{outcome.name}` | {outcome.reason.replace('|', '/')} |"
        for outcome in sorted(outcomes, key=lambda each: (each.state == "passed", each.name))
    ]
    return "\n".join(
        [
            *("# GPU report", ""),
            *(f"- GPU: {device}" for device in devices),
            f"- Tests: {told}",
            f"- Verdict: {verdict}",
            *("", "## Tests", "", "| | test | reason |", "|---|---|---|", *rows),
            *("", "## Benchmarks", "", "```", benchmarks.strip() or "not run", "```"),
            *("", "## Environment", "", "```", environment.strip(), "```", ""),
        ]
    )


def run(output: Path, quick: bool, tests: list[str]) -> int:
    """Run everything and write the folder.

    Args:
        output: the folder; it is made.
        quick: the benchmarks' quick mode, as ``python -m benchmarks --quick``.
        tests: pytest's arguments.

    Returns:
        0 if every test passed (or was skipped, but not all of them) and the benchmarks found no
        wrong result, else 1.
    """
    output.mkdir(parents=True, exist_ok=True)
    junit = output / "tests.xml"
    junit.unlink(missing_ok=True)  # of an earlier run
    tested, _ = _logged(output / "tests.log", "pytest", f"--junitxml={junit}", *tests)
    outcomes = read_outcomes(junit) if junit.exists() else []
    arguments = ["--json", str(output / "benchmarks.json"), *(["--quick"] if quick else [])]
    measured, table = _logged(output / "benchmarks.log", "benchmarks", *arguments)
    _, environment = _logged(output / "environment.log", "densesiam.collect_env")

    faults = []
    if tested != 0:
        faults.append(f"pytest ended with {tested} (tests.log)")
    if not any(outcome.state == "passed" for outcome in outcomes):
        faults.append("no test passed")
    if measured != 0:
        faults.append(f"the benchmarks ended with {measured} (benchmarks.log)")
    verdict = "; ".join(faults) or "everything passed"
    report = render(outcomes, device_lines(), environment, table, verdict)
    (output / "report.md").write_text(report)
    print(f"{verdict}\nwritten to {output}: report.md, tests.xml, benchmarks.json, logs")
    return 1 if faults else 0


def _logged(log: Path, module: str, *arguments: str) -> tuple[int, str]:
    """Run a module of Python's from the repository: its exit code, and what it printed."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    print(f"running {' '.join(command[3:])}", flush=True)
    with log.open("w") as errors:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
    log.write_text(done.stdout + log.read_text())
    return done.returncode, done.stdout


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=Path("gpu-report"), help="folder to write")
    parser.add_argument("--quick", action="store_true", help="the benchmarks' quick mode")
    parser.add_argument("--allow-cpu", action="store_true", help="go on without a GPU")
    parser.add_argument(
        "tests", nargs="*", default=["-m", "gpu"], help="pytest's arguments (after --): -m gpu"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.allow_cpu:
        print(
            f"there is no GPU: torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}) "
            "finds none, and this command is for what only a GPU can show. Run it on a machine "
            "with one, with a torch built for CUDA (or see the report's form with --allow-cpu)",
            file=sys.stderr,
        )
        return 2
    return run(options.output, options.quick, options.tests)


if __name__ == "__main__":
    sys.exit(main())
