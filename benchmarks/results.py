"""What was measured, as it is kept in a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Timing

CEILING = "clone"
"""The candidate that is no computation."""

PEERS = ("eager", "compile", "release", "two_ops", "by_hand")
"""Candidates that compute the same as ours, in tables from left to right."""

PEER_NAMES = {
    "eager": "library, eager",
    "compile": "library, compiled",
    "release": "release's arrangement",
    "two_ops": "our two operations",
    "by_hand": "written by hand",
}
"""What they are called where there is room."""


@dataclass(frozen=True)
class Row:
    """One operation at one shape, and everyone who computes it.

    Attributes:
        op: the operation.
        name: the shape's name.
        shape: the shape in words.
        layout: of the maps.
        dtype: of the maps.
        threads: of the host.
        group: which part of the suite it belongs to.
        x: where it stands on the axis, if the group varies one number.
        rounds: measured rounds.
        mandatory_bytes: of forward and backward.
        milliseconds: forward and backward by candidate, each with median, low and high.
        forward_milliseconds: forward alone.
        called_milliseconds: forward and backward called from Python, where there is a GPU and
            `milliseconds` may be of a graph that is replayed.
        clocks: ``wall``, ``events`` or ``graph`` by candidate.
        uncaptured: why there is no graph of a candidate.
        extra_bytes: peak memory beyond inputs and outputs, by candidate.
        parts: milliseconds of single library calls, forward and backward.
        compile_seconds: first call of the compiled composition.
        wrong_peers: error of those whose result is wrong, or why they cannot; they have no time.
        refused: the same for our backends.
    """

    op: str
    name: str
    shape: str
    layout: str
    dtype: str
    threads: int
    group: str
    rounds: int
    mandatory_bytes: int
    x: float | None = None
    milliseconds: dict[str, Timing] = field(default_factory=dict)
    forward_milliseconds: dict[str, Timing] = field(default_factory=dict)
    called_milliseconds: dict[str, Timing] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)
    uncaptured: dict[str, str] = field(default_factory=dict)
    extra_bytes: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Timing] = field(default_factory=dict)
    compile_seconds: float | None = None
    wrong_peers: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two rows of two runs the same."""
        return (
            self.group,
            self.op,
            self.name,
            self.shape,
            self.layout,
            self.dtype,
            f"{self.threads}",
        )

    @property
    def backends(self) -> list[str]:
        """Our own candidates."""
        return [name for name in self.milliseconds if name not in (*PEERS, CEILING)]

    def faster(self, backend: str, peer: str) -> float | None:
        """How many times faster a backend is than a peer; None if one has no time."""
        own, other = self.milliseconds.get(backend), self.milliseconds.get(peer)
        return None if own is None or other is None else other.median / own.median

    def of_memory(self, backend: str, peer: str) -> float | None:
        """A backend's extra memory as a share of a peer's; None where the peer has none."""
        own, other = self.extra_bytes.get(backend), self.extra_bytes.get(peer)
        return None if own is None or not other else own / other


@dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        machine: device, threads, versions, commit, flags.
        command: the arguments.
        rows: what was measured.
        steps: whole training steps: by name of the network, then of the backend.
        host: microseconds of a call of each operation on tiny maps (`benchmarks.host`).
    """

    machine: dict[str, Any]
    command: str
    rows: list[Row]
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    host: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write everything as JSON; the file is whole at every moment."""
        _replace(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            values = json.loads(path.read_text())
            rows = [_row(row) for row in values["rows"]]
            further = {name: values.get(name, {}) for name in ("steps", "host")}
            return cls(values["machine"], values["command"], rows, **further)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} holds no results of `python -m benchmarks` of this version: {error!r}"
            ) from None

    def write_csv(self, path: Path) -> None:
        """Write the times as a table: one line for each row, candidate and pass."""
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in self.rows:
                writer.writerows(_lines(row))


_COLUMNS = (
    *("group", "op", "name", "shape", "layout", "dtype", "threads", "x", "rounds"),
    *("mandatory_bytes", "candidate", "pass", "clock", "median_ms", "low_ms", "high_ms"),
    *("extra_bytes", "compile_seconds"),
)


def _lines(row: Row) -> Iterator[dict[str, Any]]:
    passes = {"forward": row.forward_milliseconds, "forward+backward": row.milliseconds}
    for direction, times in passes.items():
        for candidate, timing in times.items():
            values = asdict(row) | {
                "candidate": candidate,
                "pass": direction,
                "clock": row.clocks[candidate],
                "median_ms": f"{timing.median:.4f}",
                "low_ms": f"{timing.low:.4f}",
                "high_ms": f"{timing.high:.4f}",
                "extra_bytes": row.extra_bytes.get(candidate),
                "compile_seconds": row.compile_seconds if candidate == "compile" else None,
            }
            yield {column: values[column] for column in _COLUMNS}


def _row(values: dict[str, Any]) -> Row:
    timings = ("milliseconds", "forward_milliseconds", "called_milliseconds", "parts")
    for name in timings:
        values[name] = {who: Timing(**timing) for who, timing in values.get(name, {}).items()}
    return Row(**values)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
