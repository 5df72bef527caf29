"""The folder that comes back: few files, each whole at every moment, none too large.

    1-uses.json  2-accuracy.json  3-benchmarks.json  4-tests.json     a stage each
    report.md    what they say, for people
    logs.zip     what every program printed
    built.zip    the libraries that were built there

A stage is a list of steps, each with what became of it. Handed back in, a step that has run is not
run again.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAGES = {1: "uses", 2: "accuracy", 3: "benchmarks", 4: "tests"}
LIBRARIES = "built.zip"
LOGS = "logs.zip"
FILES = (*(f"{number}-{name}.json" for number, name in STAGES.items()), "report.md", LOGS)
MOST_FILES = 8
MOST_BYTES = 16 << 20  # of a file
DEEPEST = 2  # folders
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
LOG_BYTES = 256 << 10  # of each log, where all of them are too large together

FINAL = ("done", "failed", "timed out", "absent")
"""States of a step that is not to be run again; one that was "cut off" or is "running" is."""


@dataclass
class Stage:
    """One stage's results.

    Attributes:
        number: from 1.
        subject: what they belong to: sources, GPU, torch. Those of another subject do not count.
        steps: by name: state, seconds, what was said, data.
    """

    number: int
    subject: dict[str, str]
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.number}-{STAGES[self.number]}.json"

    def has(self, step: str) -> bool:
        """Whether the step has run to an end."""
        return self.steps.get(step, {}).get("state") in FINAL


class Report:
    """The folder. Steps that run side by side may write to it.

    Args:
        folder: it is made.
        earlier: the folder of an earlier visit, to go on from.
    """

    def __init__(self, folder: Path, earlier: Path | None = None) -> None:
        if earlier is not None and not earlier.is_dir():
            raise NotADirectoryError(f"the earlier report must be a folder, got {earlier}")
        self.folder = folder
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*FILES, LIBRARIES):
            if earlier and (earlier / name).is_file() and not (folder / name).exists():
                shutil.copyfile(earlier / name, folder / name)

    def stage(self, number: int, subject: dict[str, str]) -> Stage:
        """What the folder has of a stage, where it belongs to this subject."""
        empty = Stage(number, subject)
        try:
            values = json.loads((self.folder / empty.file).read_text(encoding="utf-8"))
            stage = Stage(number, values["subject"], values["steps"])
        except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours: start anew
            return empty
        return stage if stage.subject == subject else empty

    def save(self, stage: Stage) -> None:
        """Write a stage. What is too large to come back goes without its data, and says so."""
        with self._lock:
            text = json.dumps(vars(stage), default=str)
            if len(text) > MOST_BYTES:
                cut = {"data": None, "said": "the data was too large to come back"}
                steps = {name: step | cut for name, step in stage.steps.items()}
                text = json.dumps(vars(stage) | {"steps": steps}, default=str)
            self.place(stage.file, text.encode("utf-8", "replace"))

    def write(self, name: str, text: str) -> None:
        """Write a text, cut with a word where it is too large."""
        self.place(name, shortened(text.encode("utf-8", "replace"), MOST_BYTES))

    def keep_logs(self, folder: Path) -> None:
        """Pack a folder's logs; where they are too large, only the two ends of each."""
        with self._lock:
            logs = {path.name: path.read_bytes() for path in sorted(folder.glob("*.log"))}
            data = packed(logs)
            if len(data) > MOST_BYTES:
                data = packed({name: shortened(log, LOG_BYTES) for name, log in logs.items()})
            self.place(LOGS, data)

    def place(self, name: str, data: bytes) -> None:
        """The one way into the folder: within its limits, and at once.

        Raises:
            ValueError: it could not come back.
        """
        parts = name.split("/")
        if len(parts) > DEEPEST + 1 or not all(NAME.fullmatch(part) for part in parts):
            raise ValueError(
                "a result's name is of letters, digits, '.', '_' and '-', at most "
                f"{DEEPEST} folders deep, got {name!r}"
            )
        if len(data) > MOST_BYTES:
            raise ValueError(f"{name} has {len(data)} bytes, and {MOST_BYTES} can come back")
        path = self.folder / name
        with self._lock:
            there = [p for p in self.folder.rglob("*") if p.is_file() and p.suffix != ".part"]
            if path not in there and len(there) >= MOST_FILES:
                raise ValueError(f"{MOST_FILES} files can come back, and {name} is one more")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.part")
            temporary.write_bytes(data)
            os.replace(temporary, path)


def packed(files: dict[str, bytes]) -> bytes:
    """The files as a zip archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def shortened(data: bytes, most: int) -> bytes:
    """The beginning and the end, with a word about what was between, where it is too long."""
    if len(data) <= most:
        return data
    word = f"\n[... about {len(data) - most} bytes were cut out here ...]\n".encode()
    half = (most - len(word)) // 2
    return data[:half] + word + data[len(data) - half :]
