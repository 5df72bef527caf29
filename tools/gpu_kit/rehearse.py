"""``python -m tools.gpu_kit rehearse``: the whole visit without a GPU, from the kit alone.

The kit is copied to a folder far from the repository, which is write-protected, and run there with
hardly any environment: no home, no path to the repository, no CUDA_HOME. The emulator takes the
GPU's place. As on a visit, it is several commands, each handed what the one before brought back.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.gpu_kit.report import FINAL

ROOT = Path(__file__).parents[2]
KEPT = ("PATH", "LD_LIBRARY_PATH", "http_proxy", "https_proxy")


def main(arguments: Sequence[str]) -> int:
    """Rehearse; the exit code is the last visit's."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_kit rehearse", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kit", type=Path, default=ROOT / "build" / "gpu-kit")
    parser.add_argument("--python", default=sys.executable, help="that has what is there as well")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "gpu-rehearsal")
    parser.add_argument("--minutes", type=float, default=25.0, help="of each visit")
    parser.add_argument("--patience", type=float, default=3.0, help="times every limit")
    parser.add_argument("--visits", type=int, default=3, help="at the most")
    parser.add_argument("others", nargs="*", help="after --: further arguments of each visit")
    options = parser.parse_args(arguments)
    if not (options.kit / "run.py").exists():
        raise SystemExit(f"there is no kit in {options.kit}: make it with `make gpu-kit`")
    shutil.rmtree(options.report, ignore_errors=True)
    options.report.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        away = Path(folder) / "kit"
        shutil.copytree(options.kit, away)
        # The GPU's place is taken before the visit begins, and its time with it.
        command = [options.python, "-m", "tests.emulator.build"]
        subprocess.run(command, cwd=ROOT, check=True)
        emulator = away / "source" / "build" / "emulator"
        shutil.copytree(ROOT / "build" / "emulator", emulator)
        for path in [*away.rglob("*"), away]:
            path.chmod(path.stat().st_mode & 0o555)
        variables = {name: value for name, value in os.environ.items() if name in KEPT}
        earlier: list[str] = []
        for number in range(1, options.visits + 1):
            report = options.report.absolute() / f"visit-{number}"
            command = [options.python, str(away / "run.py"), "--rehearse", "--report", str(report)]
            command += ["--minutes", str(options.minutes), "--patience", str(options.patience)]
            command += [*earlier, *options.others]
            print(f"visit {number}: {' '.join(command)}", flush=True)
            code = subprocess.run(command, cwd=folder, env=variables, check=False).returncode
            earlier = ["--earlier", str(report)]
            if finished(report):
                break
        for path in [away, *away.rglob("*")]:  # so that it can be removed
            path.chmod(path.stat().st_mode | 0o700)
    return code


def finished(report: Path) -> bool:
    """Whether nothing is left for another visit: what went wrong stays so, what was cut off not."""
    stages = [json.loads(file.read_text()) for file in report.glob("[1-4]-*.json")]
    return all(step["state"] in FINAL for stage in stages for step in stage["steps"].values())
