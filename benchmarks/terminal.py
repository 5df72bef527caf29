"""The table that is printed while it is measured."""

from __future__ import annotations

from benchmarks.goals import unmet
from benchmarks.results import CEILING, PEER_NAMES, Row


def header() -> str:
    """The table's head."""
    return (
        f"{'operation':19}{'shape':52}{'layout, type':24}{'backend':9}{'ms (quartiles)':24}"
        f"{'forward':>8}{'eager':>8}{'compile':>9}{'release':>9}{'clone':>7}"
        f"{'extra MB':>10}{'eager MB':>10}  further"
    )


def render(row: Row) -> str:
    """A line for each backend, and one for each that was refused."""
    lines = []
    start = f"{row.op:19}{f'{row.name}: {row.shape}':52}{_kind(row):24}"
    for name in row.backends:
        own, forward = row.milliseconds[name], row.forward_milliseconds.get(name)
        share = row.faster(name, CEILING)
        lines.append(
            f"{start}{name:9}{f'{own.median:.2f} ({own.low:.2f}-{own.high:.2f})':24}"
            f"{_number(forward.median if forward else None):>8}"
            f"{_times(row, name, 'eager'):>8}{_times(row, name, 'compile'):>9}"
            f"{_times(row, name, 'release'):>9}{share:>7.0%}"
            f"{_megabytes(row, name):>10}{_megabytes(row, 'eager'):>10}  {_further(row, name)}"
        )
    lines += [f"{start}{name:9}{error}: not timed" for name, error in row.refused.items()]
    return "\n".join(lines or [f"{start}no backend of ours serves this"])


def _kind(row: Row) -> str:
    if row.group == "threads":
        return f"{row.layout}, threads: {row.threads}"
    return f"{row.layout}, {row.dtype}"


def _further(row: Row, backend: str) -> str:
    """Single library calls, our own two operations, and the goals that are missed."""
    own = row.milliseconds[backend].median
    words = [f"{name} alone {timing.median / own:.1f}x" for name, timing in row.parts.items()]
    if (called := row.called_milliseconds.get(backend)) is not None:
        words.insert(0, f"{called.median:.2f} ms from Python")
    for peer in ("two_ops", "by_hand"):
        if (ratio := row.faster(backend, peer)) is not None:
            words.append(f"{PEER_NAMES[peer]} {ratio:.2f}x")
    if row.compile_seconds is not None:
        words.append(f"compiled in {row.compile_seconds:.0f} s")
    words += [f"MISSED {words_}" for words_ in unmet(row, backend)]
    return "; ".join(words)


def _times(row: Row, backend: str, peer: str) -> str:
    ratio = row.faster(backend, peer)
    if ratio is not None:
        return f"{ratio:.1f}x"
    return row.wrong_peers.get(peer, "-").split(" ")[0].rstrip(":")


def _megabytes(row: Row, candidate: str) -> str:
    size = row.extra_bytes.get(candidate)
    return _number(None if size is None else size / 1e6, 1)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
