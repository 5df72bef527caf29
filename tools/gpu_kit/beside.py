"""What was measured of each case beside what was counted without a GPU.

The counts are those of ``benchmarks/roofline.json``: the machine code of one architecture, executed
(`benchmarks.roofline`). Measured are launches, by torch's profiler or Nsight Compute. Where the two
differ, either the model of the GPU or the kernel does something that nobody thought of. Standard
library only: a visit and `python -m benchmarks roofline` use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COUNTS = Path(__file__).parents[2] / "benchmarks" / "roofline.json"
LANES = 32
OURS = "densesiam"
"""In the names of our CUDA kernels; what else is launched fills memory."""

Counts = Mapping[str, Mapping[str, Any]]


def counted(gpus: Any) -> Counts:
    """The committed counts for the first of these GPUs, by case; none for a GPU without any.

    Args:
        gpus: as `tools.gpu_kit.environment` tells of them.
    """
    try:
        architecture = "sm_" + gpus[0]["capability"].replace(".", "")
        return json.loads(COUNTS.read_text(encoding="utf-8"))[architecture]
    except (LookupError, TypeError, OSError, ValueError):  # no GPU, or nothing was counted for it
        return {}


def compared(launches: Iterable[Mapping[str, Any]], counts: Counts) -> list[dict[str, Any]]:
    """A row a case that was counted: pairs of what was counted and what was measured.

    Args:
        launches: each with ``of``, its case, ``bytes``, those that the case must move, ``kernel``,
            and what a tool measured of it (`tools.gpu_kit.stages.METRICS`).
        counts: rows of ``benchmarks/roofline.json``, of the same number of images.

    Returns:
        By case: ``launches``, ``fills`` (of memory), ``microseconds``, ``registers`` (the most),
        ``instructions`` of a thread and ``bytes`` of memory, each a mandatory byte; a pair of
        counted and measured, with None for what was not measured. ``share`` is of the roof:
        predicted, and the roof over what was measured.
    """
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for launch in launches:
        if launch.get("of") in counts:
            cases.setdefault(launch["of"], []).append(launch)
    rows = []
    for case, every in cases.items():
        row = counts[case]
        ours = [launch for launch in every if OURS in launch["kernel"]]
        size = every[0].get("bytes")
        time = _sum(every, "nanoseconds", scale=1e-3)
        moved = [_sum(ours, f"bytes {how}", size) for how in ("read", "written")]
        registers = [launch.get("registers") for launch in ours]
        rows.append(
            {
                "of": case,
                "launches": (row["launches"], len(ours)),
                "fills": (row["clears"], len(every) - len(ours)),
                "microseconds": (row["microseconds"], time),
                "share": (row["share"], row["roof"] / time if time else None),
                "registers": (row["registers"], max((r for r in registers if r), default=None)),
                "instructions": (
                    row["instructions"],
                    _sum(ours, "warp instructions", size, scale=LANES),
                ),
                "bytes": (row["sectors"], None if None in moved else moved[0] + moved[1]),
            }
        )
    return rows


def before_and_after(
    before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row a case that both commits know: pairs of what they took.

    Args:
        before: launches of the one commit, as `compared` takes them.
        after: of the other.

    Returns:
        By case: ``launches``, fills of memory among them, ``microseconds``, a pair each; ``times``
        as fast. A case of the same name that moves other bytes is another one.
    """
    sides: list[dict[tuple[Any, Any], list[Mapping[str, Any]]]] = [{}, {}]
    for side, launches in zip(sides, (before, after), strict=True):
        for launch in launches:
            side.setdefault((launch.get("of"), launch.get("bytes")), []).append(launch)
    rows = []
    for key, new in sides[1].items():
        if (old := sides[0].get(key)) is None:
            continue
        times = [_sum(each, "nanoseconds", scale=1e-3) for each in (old, new)]
        rows.append(
            {
                "of": key[0],
                "launches": (len(old), len(new)),
                "microseconds": tuple(times),
                "times": times[0] / times[1] if all(times) else None,
            }
        )
    return rows


def _sum(
    launches: Iterable[Mapping[str, Any]], key: str, size: float | None = 1, scale: float = 1
) -> float | None:
    """Over all launches, a byte; None where one of them does not tell."""
    values = [launch.get(key) for launch in launches]
    if not values or not size or any(value is None for value in values):
        return None
    return scale * sum(values) / size
