"""What the project asks of itself, and how far each row is from it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import CEILING, Row


@dataclass(frozen=True)
class Goal:
    """What a row should reach, forward and backward in float32; None is not asked.

    Attributes:
        eager: times faster than the library composition run eagerly.
        compiled: times faster than the same compiled.
        ceiling: share of the clone ceiling.
        memory: extra memory as a share of the eager composition's, at the most.
        two_ops: times faster than our own two operations.
        two_ops_memory: extra memory as a share of theirs, at the most.
        release: times faster than the release's arrangement.
        release_memory: extra memory as a share of that one's, at the most.
    """

    eager: float | None = None
    compiled: float | None = None
    ceiling: float | None = None
    memory: float | None = None
    two_ops: float | None = None
    two_ops_memory: float | None = None
    release: float | None = None
    release_memory: float | None = None


_CPU = {
    ("overlap_sample", "segmentation"): Goal(5, 5, 0.4, memory=0),
    ("pixel_similarity", "cosine 128"): Goal(6, 1.3, 0.5, memory=0.1),
    ("pixel_similarity", "cross-entropy 27"): Goal(3, 1.5, 0.25, memory=0.1),
    ("pixel_similarity", "cross-entropy 128"): Goal(3, 1.5, 0.25, memory=0.1),
    ("overlap_similarity", "C2, K = 7"): Goal(two_ops=1, two_ops_memory=0.5),
    ("overlap_similarity", "C5, K = 7"): Goal(two_ops=1, two_ops_memory=0.5),
    ("region_pool", "27 regions"): Goal(1, 1),
    ("region_pool", "128 regions"): Goal(1, 1),
    ("pseudo_label_loss", "27 classes"): Goal(3, 1.5, 0.25, memory=0.1),
    ("pseudo_label_loss", "27 classes, inverse"): Goal(3, 1.5, 0.25, memory=0.1),
    ("label_map", "evaluation"): Goal(3, 1.5, memory=0.1),
    ("confusion_matrix", "27 x 27"): Goal(3, 1.5, memory=0.1),
    ("roi_align", "P2, 512 boxes"): Goal(1),
    ("roi_align", "P4, 512 boxes"): Goal(2),
    ("roi_align", "dense"): Goal(2),
}
_COMPOSITE = Goal(release=2, release_memory=0.5)
_GPU_MEMORY_BOUND = Goal(5, 1.3, 0.9)
_GPU_PRODUCTS = Goal(5, 1.3)

A_FEW_NUMBERS = 4096
"""Bytes that are none: they do not grow with the maps."""

COMPOSITES = ("segmentation", "pretraining")


def goal(row: Row) -> Goal | None:
    """What is asked of a row; only the method's own shapes in float32 have goals."""
    if row.group != "own" or row.dtype not in ("float32", "int64"):
        return None
    if row.op in COMPOSITES:
        return _COMPOSITE
    if "cpu" in row.backends:
        return _CPU.get((row.op, row.name))
    if row.op == "roi_align":  # nothing is asked of it on a GPU yet
        return None
    return _GPU_PRODUCTS if row.op == "region_pool" else _GPU_MEMORY_BOUND


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
