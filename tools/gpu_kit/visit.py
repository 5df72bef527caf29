"""The visit: stages in the order of their worth, each ended in time, each with a report.

    python3 run.py --report FOLDER                     all of it
    python3 run.py --report FOLDER --minutes 9         as much as that takes
    python3 run.py --report FOLDER --earlier FOLDER    go on where an earlier visit ended
    python3 run.py --report FOLDER --steps STEP ...    only these, in this order

Stages: 1 the build and the uses, 2 every operation against the float64 reference, 3 the
benchmarks, 4 the tests marked gpu, then the sanitizer and the profiler. With fewer than 15 minutes
steps of all stages run in the order of their worth: accuracy, uses and tests side by side, the
launches, the method's own shapes, then the others. Exit code: 0 where all of it ran and is right, 1
where something failed or is wrong, 2 where nothing can run here, 3 where the time was up first.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import site
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.gpu_kit import process
from tools.gpu_kit.page import render, verdict
from tools.gpu_kit.process import Outcome
from tools.gpu_kit.report import LIBRARIES, LOGS, STAGES, Report, Stage, packed

STAGE_SECONDS = 8 * 60.0
MARGIN = 10.0  # seconds from the end of a stage's programs to its own
LEAST = 5.0  # seconds that are worth beginning a step for
SHORT = 15.0  # minutes: a visit of fewer takes its steps by their rank
OLDEST_TORCH = (2, 10)
BUILT_FROM = ("csrc", "setup.py", "pyproject.toml")

REPOSITORY = Path(__file__).parents[2]

Record = dict[str, Any]


class RefusalError(Exception):
    """Nothing can run here. The message says what was found and what to do."""


@dataclass(frozen=True)
class Step:
    """A part of a stage that is recorded, and handed back in, as a whole.

    Attributes:
        name: unique in its stage.
        seconds: its own time limit.
        run: does it in so many seconds; returns state, what was said, data.
        together: steps next to each other with the same word run side by side.
        rank: of its worth in a short visit; the lowest come first.
    """

    name: str
    seconds: float
    run: Callable[[Visit, Step, float], Record]
    together: str | None = None
    rank: int = 9


class Visit:
    """One visit, and what its steps have in common.

    Attributes:
        root: the kit, or the repository.
        source: the sources that run, with the libraries in them.
        before: those of the commit that they are timed beside; None where none came along.
        work: folder for everything that does not come back.
        report: the folder that comes back.
        options: the command line.
        facts: what the machine is (tools/gpu_kit/environment.py).
    """

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        self.end = time.monotonic() + 60 * options.minutes
        self.patience = options.patience
        self.stopped = False
        self.report = Report(options.report.absolute(), options.earlier)
        self.work = Path(options.work or tempfile.mkdtemp(prefix="gpu-kit-")).absolute()
        for name in ("home", "tmp", "logs", "site"):
            (self.work / name).mkdir(parents=True, exist_ok=True)
        self.is_kit = (root / "kit.json").exists()
        self.source = root
        if self.is_kit:  # it stays as it is, and may be write-protected
            self.source = self.work / "source"
            copy(root / "source", self.source)
        self.before = root / "before" if (root / "before").is_dir() else None
        self.facts: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._logs = self._earlier_logs()
        self._ends: dict[int, float] = {}

    # -- what runs -----------------------------------------------------------------------------

    def environment(self, source: Path) -> dict[str, str]:
        """Variables of everything that is run: nothing is read from a home, or left in it.

        Args:
            source: the sources that run.
        """
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONDONTWRITEBYTECODE")
            and not name.startswith(("DENSESIAM", "PYTEST", "TORCH_CUDA_ARCH", "FORCE_"))
        }
        home, packages = self.work / "home", self.work / "site"
        paths = {
            "PATH": [
                Path(sys.executable).parent,
                packages / "bin",
                inherited.get("PATH", os.defpath),
                "/usr/local/cuda/bin",
            ],
            "PYTHONPATH": [source, packages, inherited.get("PYTHONPATH", "")],
        }
        joined = {k: os.pathsep.join(str(p) for p in v if str(p)) for k, v in paths.items()}
        settings = {
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            "LC_ALL": "C.UTF-8",
            "HOME": str(home),
            "PYTHONUSERBASE": site.getuserbase(),  # packages there are found by the old home
            "TMPDIR": str(self.work / "tmp"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "MPLBACKEND": "Agg",
            "TORCH_EXTENSIONS_DIR": str(self.work / "extensions"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "TRITON_CACHE_DIR": str(self.work / "triton"),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "HF_HUB_OFFLINE": "1",
        }
        if self.options.rehearse:  # there is no GPU to ask for its architecture
            settings["TORCH_CUDA_ARCH_LIST"] = "9.0"
        return inherited | joined | settings

    def module(self, name: str, *arguments: str | Path) -> list[str | Path]:
        """Command for one of Python's modules; in a rehearsal with a stand-in for the GPU."""
        names = ["-m", "tests.stand_in", name] if self.options.rehearse else ["-m", name]
        return [sys.executable, "-W", "ignore", *names, *arguments]

    def program(
        self,
        title: str,
        command: Sequence[str | Path],
        seconds: float,
        *,
        source: Path | None = None,
        variables: dict[str, str] | None = None,
        tick: Callable[[str], None] = lambda _: None,
        **others: Any,
    ) -> Outcome:
        """Run a program from the sources' folder; what it prints is kept as a log.

        Args:
            title: what it is called in the log.
            command: program and arguments.
            seconds: time limit.
            source: other sources than the visit's.
            variables: more of the environment's variables.
            tick: called now and then while it runs, with what it has printed by then.
            others: for `process.run`.
        """
        with self._lock:
            self._logs += 1
            name = "".join(c if c.isalnum() else "-" for c in title).strip("-")
            log = self.work / "logs" / f"{self._logs:03d}-{name}.log"

        def ticking() -> None:
            tick(log.read_text(encoding="utf-8", errors="replace"))
            self.report.keep_logs(log.parent)

        source = source or self.source
        outcome = process.run(
            command,
            log,
            seconds,
            folder=source,
            environment=self.environment(source) | (variables or {}),
            tick=ticking,
            **others,
        )
        line = " ".join(str(part) for part in command)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n[{outcome.state}, exit {outcome.code}, {outcome.seconds:.1f} s: {line}]")
        self.report.keep_logs(log.parent)
        return outcome

    def take_logs(self, folder: Path, title: str) -> None:
        """Keep the logs that a program wrote into a folder of its own."""
        for path in sorted(folder.glob("*.log")):
            name = "".join(c if c.isalnum() else "-" for c in f"{title} {path.stem}")
            shutil.copyfile(path, self.work / "logs" / f"{self._logs:03d}-{name}.log")
        self.report.keep_logs(self.work / "logs")

    def _earlier_logs(self) -> int:
        """Unpack the logs that were handed back in, and count on from them."""
        path = self.report.folder / LOGS
        with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
            archive.extractall(self.work / "logs")
        return len(list((self.work / "logs").glob("*.log")))

    # -- before the stages ---------------------------------------------------------------------

    def unpack_wheels(self) -> None:
        """Make the packages that are missing here importable, without installing anything."""
        wheels = sorted((self.root / "wheels").glob("*.whl"))
        names = sorted({wheel.name.split("-")[0] for wheel in wheels})
        if not names:
            return
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        folders = ["--find-links", self.root / "wheels", "--target", self.work / "site"]
        done = self.program("wheels", [*install, *folders, *names], 120)
        if done.state != "done":  # no pip, or another Python: a wheel is an archive
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(self.work / "site")

    def look_around(self) -> dict[str, Any]:
        """What the machine is.

        Raises:
            RefusalError: nothing can run on it.
        """
        file = self.work / "environment.json"
        file.unlink(missing_ok=True)
        command = self.module("tools.gpu_kit.environment", "--json", file)
        done = self.program("environment", command, 180 * self.patience)
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            last = done.text.strip().splitlines()[-1:] or ["it said nothing"]
            if done.state == "timed out":
                raise RefusalError(
                    f"{sys.executable} did not tell about this machine within {done.seconds:.0f} s "
                    f"({last[0]}). Try again when less else runs here, or with a larger --patience"
                ) from None
            raise RefusalError(
                f"{sys.executable} cannot import torch and tell about this machine ({done.state}: "
                f"{last[0]}). Run this with the Python that has torch 2.10 or newer"
            ) from None
        return facts

    def require(self) -> None:
        """Require torch, new enough, and a GPU.

        Raises:
            RefusalError: one of them is missing.
        """
        found = self.facts["torch"]
        if not isinstance(found, dict):
            raise RefusalError(
                f"{sys.executable} cannot import torch ({found}). Run this with the Python that "
                "has torch 2.10 or newer"
            )
        version = tuple(int(part) for part in found["torch"].split("+")[0].split(".")[:2])
        if version < OLDEST_TORCH:
            raise RefusalError(
                f"torch here is {found['torch']}, and 2.10 or newer is needed. Use "
                "another environment, or install a newer torch"
            )
        if not isinstance(self.facts["gpus"], list) or not self.facts["gpus"]:
            raise RefusalError(
                f"torch {found['torch']} (CUDA {found['cuda'] or 'none'}) finds no GPU here. Run "
                "this on a machine with one, with a torch built for CUDA (--rehearse goes through "
                "all of it with a stand-in, and shows nothing about any GPU)"
            )

    def prepare_libraries(self) -> str:
        """Put the best libraries there are into the sources: built here before, or brought along.

        Returns:
            Where they come from.
        """
        if not self.is_kit:
            return "the repository's own"
        built = self.report.folder / LIBRARIES
        unusable = (zipfile.BadZipFile, OSError, KeyError)
        with contextlib.suppress(*unusable), zipfile.ZipFile(built) as archive:
            if archive.read("digest").decode() == self.built_digest:
                archive.extractall(self.source / "densesiam")
                (self.source / "densesiam" / "digest").unlink()
                return "built here before, and handed back in"
        return self.use_brought_libraries()

    def use_brought_libraries(self) -> str:
        """Put the libraries that were brought along into the sources."""
        for path in (self.source / "densesiam").glob("*.so"):
            path.unlink()
        copy(self.root / "built", self.source / "densesiam")
        return "brought along"

    def keep_libraries(self) -> None:
        """Keep what was built here, to be handed back in."""
        files = {p.name: p.read_bytes() for p in (self.source / "densesiam").glob("_*.so")}
        files |= {p.name: p.read_bytes() for p in (self.source / "densesiam").glob("_*.json")}
        self.report.place(LIBRARIES, packed(files | {"digest": self.built_digest.encode()}))

    @property
    def built_digest(self) -> str:
        """Of what libraries are built from, and for which torch."""
        return digest(self.source, BUILT_FROM, self.facts["torch"]["torch"])

    @property
    def subject(self) -> dict[str, str]:
        """What results belong to."""
        folders = (*BUILT_FROM, "densesiam", "kernels", "benchmarks", "tests", "tools")
        return {
            "sources": digest(self.source, folders),
            "gpu": ", ".join(gpu["name"] for gpu in self.facts["gpus"]) or "none",
            "torch": self.facts["torch"]["torch"],
        } | ({"before": digest(self.before, BUILT_FROM)} if self.before else {})

    # -- the stages ----------------------------------------------------------------------------

    def run(self, steps: dict[int, list[Step]]) -> int:
        """Everything.

        Returns:
            The exit code.

        Raises:
            RefusalError: nothing can run here.
        """
        self.unpack_wheels()
        self.facts = self.look_around()
        self.require()
        self.stages = {number: self.report.stage(number, self.subject) for number in STAGES}
        self.say(f"libraries: {self.prepare_libraries()}")
        for _, side_by_side in groupby(
            self.plan(steps), lambda each: each[1].together or (each[0], each[1].name)
        ):
            todo = [
                (self.stages[number], step)
                for number, step in side_by_side
                if not self.stages[number].has(step.name)
            ]
            for stage, _ in todo:
                self._begin(stage)
            with ThreadPoolExecutor(min(len(todo), os.cpu_count() or 1) or 1) as pool:
                list(pool.map(lambda each: self._run_step(*each), todo))
        self._write_page()
        word, code = verdict(self.stages, {n: [s.name for s in steps[n]] for n in STAGES})
        self.say(f"{word}\nwritten to {self.report.folder}")
        return code

    def plan(self, steps: dict[int, list[Step]]) -> list[tuple[int, Step]]:
        """Stages and their steps in the order in which they run.

        Raises:
            RefusalError: there is no step of a name that was asked for.
        """
        every = [(number, step) for number in self.options.stages for step in steps[number]]
        if self.options.steps:
            known = {step.name: (number, step) for number, step in every}
            if unknown := [name for name in self.options.steps if name not in known]:
                raise RefusalError(
                    f"there is no step {', '.join(map(repr, unknown))} in the stages "
                    f"{', '.join(map(str, self.options.stages))}. There are {', '.join(known)}"
                )
            return [known[name] for name in self.options.steps]
        return sorted(every, key=lambda each: each[1].rank) if self.is_short else every

    @property
    def is_short(self) -> bool:
        """Whether there is not the time for stage after stage."""
        return self.options.minutes < SHORT

    def _begin(self, stage: Stage) -> None:
        """Set a stage's end, when its first step is to begin."""
        if stage.number in self._ends:
            return
        own = STAGE_SECONDS * self.patience
        if self.is_short or self.options.steps:  # in turn with the other stages' steps
            own = math.inf
        self._ends[stage.number] = min(time.monotonic() + own, self.end) - MARGIN
        self.say(f"stage {stage.number}: {STAGES[stage.number]}")

    def _run_step(self, stage: Stage, step: Step) -> None:
        own = step.seconds * self.patience
        seconds = min(own, self._ends[stage.number] - time.monotonic())
        before = stage.steps.get(step.name, {})
        start = time.monotonic()
        if seconds < LEAST or self.stopped:
            record = {"state": "cut off", "said": "no time was left"} | before
        else:
            self.note(stage, step, before | {"state": "running"})
            try:
                record = step.run(self, step, seconds)
            except Exception:  # a step's own fault costs that step
                record = {"state": "failed", "said": traceback.format_exc()}
            if self.stopped or (record["state"] == "timed out" and seconds < own):
                record["state"] = "cut off"
            record["seconds"] = round(before.get("seconds", 0) + time.monotonic() - start, 1)
        self.note(stage, step, record)
        said = (record.get("said") or "").strip().splitlines()[-1:]
        self.say(f"  {step.name}: {record['state']}, {record.get('seconds', 0)} s {''.join(said)}")

    def note(self, stage: Stage, step: Step, record: Record) -> None:
        """Keep a step's record, finished or not."""
        with self._lock:
            stage.steps[step.name] = record
            self.report.save(stage)
            self._write_page()

    def note_data(self, number: int, step: Step, data: Any) -> None:
        """Keep what a step has so far."""
        stage = self.stages[number]
        self.note(stage, step, stage.steps[step.name] | {"data": data})

    def earlier(self, number: int, step: Step) -> Any:
        """What the step has of an earlier visit that cut it off."""
        return self.stages[number].steps[step.name].get("data")

    def _write_page(self) -> None:
        self.report.write("report.md", render(self.stages, self.facts, self.options.rehearse))

    def stop(self, *_: object) -> None:
        """End at once, with a report: for a signal."""
        self.stopped = True
        process.end_all()

    def say(self, line: str) -> None:
        """Tell whoever watches."""
        print(line, flush=True)


def copy(source: Path, target: Path) -> None:
    """Copy files and nothing else of them: modes may be those of a write-protected folder."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            there = target / path.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)


def digest(folder: Path, names: Sequence[str], more: str = "") -> str:
    """Digest of files and folders, but for what Python and compilers leave in them."""
    total = hashlib.sha256(more.encode())
    for name in names:
        path = folder / name
        for file in sorted([path] if path.is_file() else path.rglob("*")):
            if file.is_file() and file.suffix not in (".so", ".pyc") and file.name != "_info.json":
                total.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--report", type=Path, default=Path("gpu-report"), help="folder to write")
    made.add_argument("--earlier", type=Path, help="report of an earlier visit, to go on from")
    made.add_argument(
        "--stages", type=int, nargs="+", choices=STAGES, default=list(STAGES), help="only these"
    )
    made.add_argument("--steps", nargs="+", metavar="STEP", help="only these, in this order")
    made.add_argument("--minutes", type=float, default=math.inf, help="end within so many")
    made.add_argument(
        "--patience", type=float, default=1.0, help="times every limit, on a slow or busy machine"
    )
    made.add_argument("--work", help="folder for what does not come back (default: a new one)")
    made.add_argument(
        "--tests", nargs="+", help="of stage 4, in place of all (paths, pytest's way)"
    )
    made.add_argument("--quick", action="store_true", help="the benchmarks' quick mode")
    made.add_argument(
        "--rehearse", action="store_true", help="without a GPU: the emulator takes its place"
    )
    return made


def main(root: Path, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and go.

    Args:
        root: the kit, or the repository.
        arguments: None for those of this process.

    Returns:
        The exit code.
    """
    from tools.gpu_kit.stages import STEPS

    options = parser().parse_args(arguments)
    try:
        visit = Visit(root, options)
        signal.signal(signal.SIGTERM, visit.stop)
        signal.signal(signal.SIGINT, visit.stop)
        return visit.run(STEPS)
    except (RefusalError, NotADirectoryError, PermissionError) as refusal:
        print(refusal, file=sys.stderr)
        return 2
