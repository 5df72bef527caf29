"""What may end the process runs in one of its own: a stray address is a failure like any other."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_apart(*arguments: str) -> None:
    """Run Python with these arguments; raise AssertionError if it fails or is ended by a signal."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
    raise AssertionError(f"python {' '.join(arguments)}: {how}\n{done.stderr[-4000:]}")
