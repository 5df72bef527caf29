"""Run a program, for so long and no longer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 3.0  # seconds between the request to end and the end
POLL = 0.1
TICK = 10.0

_running: set[subprocess.Popen] = set()


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        state: "done" (exit code 0), "failed", "timed out", "hung" (it printed nothing for too
            long), or "absent" (it could not be started).
        code: exit code; negative for a signal, None where there is none.
        seconds: how long it took.
        text: what it printed, both streams as they came.
    """

    state: str
    code: int | None
    seconds: float
    text: str


def run(
    command: Sequence[str | Path],
    log: Path,
    seconds: float,
    *,
    silence: float | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a program in a process group of its own, which ends with it, or when its time is over.

    Args:
        command: program and arguments.
        log: file that takes what it prints, as it prints it.
        seconds: time limit.
        silence: seconds after which a program that has printed nothing is ended; None for any.
        folder: where it runs.
        environment: its variables; None for those of this process.
        tick: called every `TICK` seconds while it runs.
    """
    start = time.monotonic()
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome("absent", None, time.monotonic() - start, str(error))
        _running.add(process)
        try:
            cut = _wait(process, start + seconds, log, silence, tick)
        finally:
            _end(process)
            _running.discard(process)
    text = log.read_text(encoding="utf-8", errors="replace")
    state = cut or ("done" if process.returncode == 0 else "failed")
    return Outcome(state, process.returncode, time.monotonic() - start, text)


def end_all() -> None:
    """End everything that runs; those who wait for it go on."""
    for process in list(_running):
        _kill(process, signal.SIGKILL)


def _wait(
    process: subprocess.Popen,
    deadline: float,
    log: Path,
    silence: float | None,
    tick: Callable[[], None],
) -> str | None:
    """Wait for the end; else why it was not waited for any longer."""
    size, heard = 0, time.monotonic()
    next_tick = heard + TICK
    while process.poll() is None:
        now = time.monotonic()
        if now >= deadline:
            return "timed out"
        if (grown := log.stat().st_size) != size:
            size, heard = grown, now
        if silence is not None and now - heard > silence:
            return "hung"
        if now >= next_tick:
            tick()
            next_tick = now + TICK
        time.sleep(min(POLL, deadline - now))
    return None


def _end(process: subprocess.Popen) -> None:
    """End the whole group: also what a program that ended by itself has left running."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _kill(process, number)
        # One that hangs in the driver may outlive even that: it is left behind.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _kill(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left of it
        os.killpg(process.pid, number)
