"""What the project asks of itself, and how far each row is from it."""

from __future__ import annotations

from benchmarks import ops
from benchmarks.problem import Goal
from benchmarks.results import CEILING, Row

_COMPOSITE = Goal(release=2, release_memory=0.5)

A_FEW_NUMBERS = 4096
"""Bytes that are none: they do not grow with the maps."""

COMPOSITES = ("segmentation", "pretraining")


def goal(row: Row) -> Goal | None:
    """What is asked of a row; only the method's own shapes in float32 have goals."""
    if row.group != "own" or row.dtype not in ("float32", "int64"):
        return None
    if row.op in COMPOSITES:
        return _COMPOSITE
    module = ops.MODULES.get(row.op)
    if module is None:  # of a result that is older or newer than this
        return None
    if "cpu" in row.backends:
        return next((shape.goal for shape in module.SHAPES if shape.name == row.name), None)
    return module.GPU_GOAL


def unmet(row: Row, backend: str) -> list[str]:
    """What a backend misses in a row, in words; empty if nothing is missed or asked."""
    asked = goal(row)
    if asked is None or backend not in row.milliseconds:
        return []
    missed = []
    speeds = {
        "eager": asked.eager,
        "compile": asked.compiled,
        "two_ops": asked.two_ops,
        "release": asked.release,
    }
    for peer, wanted in speeds.items():
        reached = row.faster(backend, peer)
        if wanted is not None and reached is not None and reached < wanted:
            missed.append(f"{reached:.2f}x {peer}, asked {wanted:g}x")
    share = row.faster(backend, CEILING)
    if asked.ceiling is not None and share is not None and share < asked.ceiling:
        missed.append(f"{share:.0%} of the ceiling, asked {asked.ceiling:.0%}")
    memories = {
        "eager": asked.memory,
        "two_ops": asked.two_ops_memory,
        "release": asked.release_memory,
    }
    for peer, most in memories.items():
        own, other = row.extra_bytes.get(backend), row.extra_bytes.get(peer)
        if most is None or own is None or other is None:
            continue
        if own > most * other + A_FEW_NUMBERS:
            taken = f"{own / 1e6:.1f} MB where {peer} takes {other / 1e6:.1f}"
            missed.append(f"{taken}, asked {most:g}x")
    return missed
