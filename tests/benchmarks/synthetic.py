"""Results that nobody measured, to test what is made of results."""

import random

from benchmarks.measure import Timing
from benchmarks.results import Results, Row

MACHINE = {"device": "Example processor", "threads": 2, "densesiam": "0 (abc)", "torch": "2"}
TRUE = {"eager": 40.0, "compile": 12.0, "release": 60.0, "cpu": 8.0, "clone": 4.0}


def timing(rng, milliseconds, noise, rounds):
    """Median and quartiles of rounds that scatter by `noise`, with now and then a slow one."""
    samples = [
        milliseconds * rng.lognormvariate(0, noise) * (1.5 if rng.random() < 0.05 else 1)
        for _ in range(rounds)
    ]
    return Timing.of(samples)


def row(rng=None, op="overlap_sample", name="segmentation", scale=None, noise=0.03, **other):
    """A row; `scale` multiplies the true times of some candidates."""
    rng = rng or random.Random(0)
    scale = scale or {}
    values = {
        "shape": "8x128x80x80 -> 80x80",
        "layout": "contiguous",
        "dtype": "float32",
        "threads": 2,
        "group": "own",
        "rounds": 9,
        "mandatory_bytes": 104857600,
        "extra_bytes": {"eager": 800_000, "cpu": 0, "release": 900_000, "compile": 800_000},
        "parts": {"grid_sample": timing(rng, 39, noise, 9)},
        "compile_seconds": 7.5,
    } | other
    times = {
        who: timing(rng, ms * scale.get(who, 1), noise, values["rounds"])
        for who, ms in TRUE.items()
    }
    forward = {who: timing(rng, ms * scale.get(who, 1) / 2, noise, 9) for who, ms in TRUE.items()}
    return Row(
        op,
        name,
        milliseconds=times,
        forward_milliseconds=forward,
        clocks=dict.fromkeys(TRUE, "wall"),
        **values,
    )


def results(rows, **other):
    return Results(dict(MACHINE), "python -m benchmarks --full", rows, **other)
