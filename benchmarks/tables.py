"""Results as tables: the same columns for a page and for documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import host
from benchmarks.goals import COMPOSITES, goal, unmet
from benchmarks.results import CEILING, PEER_NAMES, Results, Row
from benchmarks.suite import GROUPS


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: headings.
        notes: what each column means.
        rows: values as text.
    """

    columns: list[str]
    notes: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table for a document."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_Value = Callable[[Row, str], str]

_COLUMNS: list[tuple[str, str, _Value]] = [
    ("operation", "", lambda row, _: row.op),
    ("shape", "", lambda row, _: f"{row.name} ({row.shape})"),
    ("layout", "", lambda row, _: row.layout),
    ("type", "", lambda row, _: row.dtype),
    ("backend", "", lambda _, backend: backend),
    (
        "ms (quartiles)",
        "forward and backward; median and quartiles of the rounds",
        lambda row, backend: _timing(row, backend),
    ),
    ("forward", "ms of forward alone", lambda row, backend: _forward(row, backend)),
    (
        "from Python",
        "ms of forward and backward called from Python, where the others are of a graph's replay",
        lambda row, backend: _called(row, backend),
    ),
    ("eager", "times faster than the library, eager", lambda r, b: _times(r, b, "eager")),
    ("compile", "times faster than the library, compiled", lambda r, b: _times(r, b, "compile")),
    ("release", "times faster than the release's way", lambda r, b: _times(r, b, "release")),
    ("of clone", "share of the ceiling", lambda row, backend: _share(row, backend)),
    ("extra MB", "peak memory beyond inputs and outputs", lambda r, b: _megabytes(r, b)),
    ("eager MB", "the same of the library, eager", lambda r, _: _megabytes(r, "eager")),
    ("calls", "times faster than single library calls", lambda row, backend: _parts(row, backend)),
]


def measurements(rows: Sequence[Row]) -> Table:
    """Every row and backend; columns that would be empty or all alike are left out."""
    lines = [(row, backend) for row in rows for backend in row.backends]
    cells = [[value(row, backend) for _, _, value in _COLUMNS] for row, backend in lines]
    uniform = {"layout", "type", "backend"}
    keep = [
        k
        for k, (title, _, _) in enumerate(_COLUMNS)
        if len({line[k] for line in cells} - {"-"}) > (1 if title in uniform else 0)
    ]
    return Table(
        [_COLUMNS[k][0] for k in keep],
        [_COLUMNS[k][1] for k in keep],
        [[line[k] for k in keep] for line in cells],
    )


def goals(rows: Sequence[Row]) -> Table:
    """Which goals are met, and by how much the others are missed."""
    lines = []
    for row in rows:
        for backend in row.backends if goal(row) else []:
            missed = unmet(row, backend)
            lines.append(
                [row.op, row.name, row.layout, backend, "; ".join(missed) if missed else "met"]
            )
    return Table(["operation", "shape", "layout", "backend", "goals"], [""] * 5, lines)


def composites(rows: Sequence[Row]) -> Table:
    """Everything after the encoder: candidates side by side, with the products as the bound."""
    lines = []
    for row in rows:
        for who, timing in {**row.milliseconds, **row.parts}.items():
            if who == CEILING:
                continue
            extra = row.extra_bytes.get(who)
            release = row.milliseconds.get("release")
            lines.append(
                [
                    row.op,
                    f"{row.name} ({row.shape})",
                    _CANDIDATES.get(who, who),
                    f"{timing.median:.0f} ({timing.low:.0f}-{timing.high:.0f})",
                    f"{release.median / timing.median:.2f}x" if release else "-",
                    "-" if extra is None else f"{extra / 1e6:.0f}",
                ]
            )
    columns = ["method", "shape", "arrangement", "ms (quartiles)", "against release", "extra MB"]
    return Table(columns, [""] * len(columns), lines)


def compile_times(rows: Sequence[Row]) -> Table:
    """Seconds that the first call of the compiled composition takes."""
    lines = [
        [row.op, row.name, row.layout, f"{row.compile_seconds:.1f}"]
        for row in rows
        if row.compile_seconds is not None
    ]
    return Table(["operation", "shape", "layout", "seconds"], [""] * 4, lines)


def steps(results: Results) -> Table:
    """Whole training steps on each backend, with their most expensive operators."""
    lines = []
    for network, backends in results.steps.items():
        for backend, step in backends.items():
            ms = step["ms"]
            dearest = list(step["operators"].items())[:3]
            lines.append(
                [
                    network,
                    backend,
                    f"{ms['median']:.0f} ({ms['low']:.0f}-{ms['high']:.0f})",
                    ", ".join(f"{name} {value:.0f}" for name, value in dearest),
                ]
            )
    columns = ["step", "backend", "ms (quartiles)", "dearest operators, ms"]
    return Table(columns, [""] * 4, lines)


def host_times(results: Results) -> Table:
    """What a call takes beside its kernel."""
    cells = host.lines(results.host) if results.host else []
    return Table(list(host.COLUMNS), list(host.COLUMNS.values()), cells)


def every(results: Results) -> dict[str, Table]:
    """All tables of a result by name; those without rows are left out."""
    own = [row for row in results.rows if row.group == "own"]
    whole = [row for row in own if row.op in COMPOSITES]
    parts = [row for row in own if row not in whole]
    tables = {
        "own": measurements(parts),
        "goals": goals(own),
        "composites": composites([row for row in results.rows if row.op in COMPOSITES]),
        "steps": steps(results),
        "host": host_times(results),
        "compile": compile_times(own),
    }
    for group in GROUPS:
        if group != "own":
            rows = [row for row in results.rows if row.group == group]
            tables[group] = measurements(rows)
    return {name: table for name, table in tables.items() if table.rows}


_CANDIDATES = {**PEER_NAMES, "products": "matrix products alone"}


def _timing(row: Row, backend: str) -> str:
    timing = row.milliseconds[backend]
    return f"{timing.median:.2f} ({timing.low:.2f}-{timing.high:.2f})"


def _forward(row: Row, backend: str) -> str:
    timing = row.forward_milliseconds.get(backend)
    return "-" if timing is None else f"{timing.median:.2f}"


def _called(row: Row, backend: str) -> str:
    timing = row.called_milliseconds.get(backend)
    return "-" if timing is None else f"{timing.median:.2f}"


def _times(row: Row, backend: str, peer: str) -> str:
    ratio = row.faster(backend, peer)
    if ratio is None:
        return row.wrong_peers.get(peer, "-").split(" ")[0].rstrip(":")
    return f"{ratio:.1f}x"


def _parts(row: Row, backend: str) -> str:
    own = row.milliseconds[backend].median
    words = [f"{name} {timing.median / own:.1f}x" for name, timing in row.parts.items()]
    for peer in ("two_ops", "by_hand"):
        if (ratio := row.faster(backend, peer)) is not None:
            words.append(f"{PEER_NAMES[peer]} {ratio:.2f}x")
    return ", ".join(words) or "-"


def _share(row: Row, backend: str) -> str:
    share = row.faster(backend, CEILING)
    return "-" if share is None else f"{share:.0%}"


def _megabytes(row: Row, candidate: str) -> str:
    size = row.extra_bytes.get(candidate)
    return "-" if size is None else f"{size / 1e6:.1f}"
