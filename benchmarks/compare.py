"""``python -m benchmarks compare A B``: what became slower from one result to the other.

A time counts as changed when three things hold, so that noise does not cry wolf:

1. its median moved by more than ``--least``, 5 % by default, once the drift of the whole machine is
   taken out: the median movement of the clones and the library's own functions;
2. it moved by more than the spread of the rounds explains. A median of n rounds with quartiles q1
   and q3 has a standard error of about 1.25 (q3 - q1) / 1.35 / sqrt(n); the movement must exceed z
   of them, z so large that in one comparison out of a hundred a single row would by chance. The
   quartiles of a few rounds may lie close by luck, so no row counts as quieter than the middle one
   of its run;
3. it moved as far against the peers of its own row, which were timed in the same rounds: a
   neighbour's burst of work slows all of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Timing
from benchmarks.results import CEILING, Results, Row

CONTROLS = (CEILING, "eager", "release", "compile")
"""Candidates that do not change with our code."""

CHANCE = 0.01  # of one false alarm in a comparison
EPSILON = 1e-9  # milliseconds: a synthetic or very short time may have no spread


@dataclass(frozen=True)
class Change:
    """One time that moved.

    Attributes:
        row: of the later result.
        backend: whose time it is.
        ratio: later over earlier, the machine's drift taken out; above 1 is slower.
        threshold: how far the ratio had to be from 1 to count.
    """

    row: Row
    backend: str
    ratio: float
    threshold: float


@dataclass(frozen=True)
class Comparison:
    """Two results side by side.

    Attributes:
        slower: what became slower, the worst first.
        faster: what became faster, the best first.
        compared: how many times there are in both.
        drift: the later machine's time for what does not change, over the earlier one's.
        missing: rows of the earlier result that the later one lacks.
        memory: rows and backends whose extra memory grew by more than a tenth.
    """

    slower: list[Change]
    faster: list[Change]
    compared: int
    drift: float
    missing: list[Row]
    memory: list[tuple[Row, str]]


def compare(before: Results, after: Results, least: float = 0.05) -> Comparison:
    """Find what changed between two results.

    Args:
        before: the earlier result.
        after: the later one.
        least: the smallest relative change that counts.
    """
    earlier = {row.key: row for row in before.rows}
    pairs = [(earlier[row.key], row) for row in after.rows if row.key in earlier]
    times = [
        (old, new, backend)
        for old, new in pairs
        for backend in new.backends
        if backend in old.milliseconds
    ]
    moves = [
        _log_ratio(old.milliseconds[name], new.milliseconds[name])
        for old, new in pairs
        for name in CONTROLS
        if name in old.milliseconds and name in new.milliseconds
    ]
    drift = statistics.median(moves) if moves else 0.0
    z = statistics.NormalDist().inv_cdf(1 - CHANCE / (2 * max(len(times), 1)))
    typical = _typical_variance(before) + _typical_variance(after)
    changes = [change for pair in times if (change := _change(*pair, drift, z, typical, least))]
    found = {row.key for row in after.rows}
    return Comparison(
        slower=sorted((c for c in changes if c.ratio > 1), key=lambda c: -c.ratio),
        faster=sorted((c for c in changes if c.ratio < 1), key=lambda c: c.ratio),
        compared=len(times),
        drift=math.exp(drift),
        missing=[row for row in before.rows if row.key not in found],
        memory=[(new, name) for old, new, name in times if _memory_grew(old, new, name)],
    )


def _change(
    old: Row, new: Row, backend: str, drift: float, z: float, typical: float, least: float
) -> Change | None:
    own = _log_ratio(old.milliseconds[backend], new.milliseconds[backend])
    noise = max(_variance(old, backend) + _variance(new, backend), typical)
    controls = [n for n in CONTROLS if n in old.milliseconds and n in new.milliseconds]
    moved = statistics.median(
        [_log_ratio(old.milliseconds[n], new.milliseconds[n]) for n in controls] or [drift]
    )
    threshold = max(math.log1p(least), z * math.sqrt(noise))
    against_all, against_row = own - drift, own - moved
    if min(abs(against_all), abs(against_row)) <= threshold or against_all * against_row < 0:
        return None
    return Change(new, backend, math.exp(against_all), math.exp(threshold) - 1)


def _log_ratio(old: Timing, new: Timing) -> float:
    return math.log(max(new.median, EPSILON) / max(old.median, EPSILON))


def _variance(row: Row, candidate: str) -> float:
    """Squared relative standard error of a median."""
    timing = row.milliseconds[candidate]
    sigma = (timing.high - timing.low) / 1.349 / max(timing.median, EPSILON)
    return (1.2533 * sigma) ** 2 / row.rounds


def _typical_variance(results: Results) -> float:
    """The middle one of all rows and of all who were timed."""
    every = [_variance(row, who) for row in results.rows for who in row.milliseconds]
    return statistics.median(every or [0.0])


def _memory_grew(old: Row, new: Row, backend: str) -> bool:
    before, after = old.extra_bytes.get(backend), new.extra_bytes.get(backend)
    return before is not None and after is not None and after > 1.1 * before + 4096


def main(arguments: Sequence[str]) -> int:
    """Compare two files and say what changed.

    Returns:
        1 if something became slower or takes more memory, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, help="a JSON file of an earlier run")
    parser.add_argument("after", type=Path, help="one of a later run")
    parser.add_argument(
        "--least", type=float, default=0.05, help="smallest change that counts (default 0.05)"
    )
    options = parser.parse_args(arguments)
    try:
        before, after = Results.read(options.before), Results.read(options.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if before.machine["device"] != after.machine["device"]:
        print(
            f"two machines: {before.machine['device']} and {after.machine['device']}; "
            "what differs between them may be neither's fault"
        )
    found = compare(before, after, options.least)
    print(f"{found.compared} times compared; the machine itself: {found.drift:.2f}x the time")
    for title, changes in (("SLOWER", found.slower), ("faster", found.faster)):
        for change in changes:
            print(f"{title} {change.ratio:.2f}x (beyond {change.threshold:.0%}): {_name(change)}")
    for row, backend in found.memory:
        print(f"MEMORY {row.extra_bytes[backend] / 1e6:.1f} MB: {row.op} {row.shape}, {backend}")
    if found.missing:
        print(f"{len(found.missing)} rows of {options.before} are not in {options.after}")
    if not (found.slower or found.faster or found.memory):
        print("nothing changed beyond the noise")
    return 1 if found.slower or found.memory else 0


def _name(change: Change) -> str:
    row = change.row
    return f"{row.op} {row.shape}, {row.layout}, {row.dtype}, {change.backend}"
