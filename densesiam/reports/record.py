"""What is known of a prediction's images: written as they are done, read when it goes on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densesiam._writing import write_text
from densesiam.data.image.files import PREDICTIONS


@dataclass(frozen=True)
class Typical:
    """Where in an image a category shows most clearly.

    Attributes:
        score: how sure and how alone the category is there, in [0, 1].
        box: left, top, right, bottom as shares of the image's sides.
    """

    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Done:
    """An image that was segmented.

    Attributes:
        path: its file, as it was given.
        name: of its results.
        stamp: size in bytes and time of change of the file, by which another content is noticed.
        size: width and height, in pixels.
        seen: height and width of what the network saw.
        tiles: in how many tiles.
        pixels: of each category.
        void: pixels in none.
        confidence: mean of the network's cells, in [0, 1].
        typical: by the category's number.
        note: what of the file is not used, in words.
    """

    path: str
    name: str
    stamp: tuple[int, int]
    size: tuple[int, int]
    seen: tuple[int, int]
    tiles: int
    pixels: list[int]
    void: int
    confidence: float
    typical: dict[int, Typical] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> "Done":
        """Make it from what `Record` wrote."""
        typical = {
            int(k): Typical(each["score"], tuple(each["box"]))
            for k, each in line["typical"].items()
        }
        pairs = {name: tuple(line[name]) for name in ("stamp", "size", "seen")}
        return cls(**{**line, **pairs, "typical": typical})


class Record:
    """The file that remembers which images of a folder are done, and with which settings.

    A line is added when all files of an image are there; a process may be killed at any moment.

    Attributes:
        done: by the path of the image.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PREDICTIONS
        self.done: dict[str, Done] = {}

    def settings(self) -> dict[str, Any] | None:
        """Those that it was begun with; None where there is none yet.

        Raises:
            ValueError: it is no such record.
        """
        if not self.path.exists():
            return None
        first, _, _ = self.path.read_text(encoding="utf-8").partition("\n")
        try:
            return dict(json.loads(first)["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} does not say with which settings it was begun: remove it with what "
                "was predicted there, or give another --output"
            ) from error

    def open(self, settings: Mapping[str, Any]) -> None:
        """Begin, or go on where the settings are the same.

        Raises:
            ValueError: other settings; the message names them. Or it is no such record.
        """
        before = self.settings()
        if before is None:
            write_text(self.path, json.dumps({"settings": dict(settings)}) + "\n")
            return
        first, *lines = self.path.read_text(encoding="utf-8").split("\n")
        now = json.loads(json.dumps(dict(settings)))
        if different := [
            f"{name} was {before.get(name)}, and is {now.get(name)}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]:
            raise ValueError(
                f"{self.path.parent} holds predictions with other settings: "
                f"{'; '.join(different)}. Give another --output"
            )
        whole = []
        for line in lines:
            try:
                done = Done.read(json.loads(line))
            except (ValueError, KeyError, TypeError):  # the line that a kill cut off
                continue
            self.done[done.path] = done
            whole.append(line)
        # So that the next line begins at a line's beginning.
        write_text(self.path, "\n".join([first, *whole]) + "\n")

    def add(self, done: Done) -> None:
        """Note an image whose files are there."""
        self.done[done.path] = done
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(done), default=vars) + "\n")


def is_unfinished(folder: Path) -> bool:
    """Whether a prediction began in a folder and did not end."""
    return (folder / PREDICTIONS).is_file() and not (folder / "summary.json").is_file()


def fingerprint(path: Path) -> str:
    """A number that follows from a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
