"""``python -m benchmarks ceilings``: what this device reaches, to hold all other numbers against.

Copies of memory far larger than any cache, and matrix products by the library (cuBLAS on a GPU) in
every type that matters here; on a CPU also torch's exp of float32 within the cache.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import device
from benchmarks.device import DEVICE
from benchmarks.machine import describe_machine
from benchmarks.measure import Call, Timing, time_side_by_side

COPIED = 1 << 30  # bytes on a GPU; a CPU gets a sixteenth
IN_CACHE = 1 << 15  # numbers, read and written: 256 KiB
SIDE = 8192  # of the matrices on a GPU; a CPU gets an eighth
TYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Products of float32 with the tensor cores' short mantissa, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure(rounds: int, scale: int) -> dict[str, dict[str, float]]:
    """Bandwidth in GB/s, read and written, and products in TFLOP/s; medians and quartiles."""
    size, side = COPIED // scale, SIDE // round(scale**0.75)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found = {"copy GB/s": _rate(lambda: target.copy_(source), 2e-9 * size, rounds)}
    found["clone GB/s"] = _rate(source.clone, 2e-9 * size, rounds)
    if device.gpu is None:
        numbers, powers = -torch.rand(IN_CACHE), torch.empty(IN_CACHE)
        found["exp 10^9/s"] = _rate(
            lambda: [torch.exp(numbers, out=powers) for _ in range(100)], 1e-7 * IN_CACHE, rounds
        )
    for name, dtype in TYPES.items():
        if name == "tf32" and device.gpu is None:
            continue
        # Not zeros: with them a GPU needs less power, and is faster.
        a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
        with tf32(name == "tf32"):
            rate = _rate(functools.partial(torch.matmul, a, b), 2e-12 * side**3, rounds)
        found[f"product {name} TFLOP/s"] = rate
    return found


def _rate(call: Callable[[], object], amount: float, rounds: int) -> dict[str, float]:
    timing: Timing = time_side_by_side({"": Call(lambda _: call())}, rounds)[""][1]
    seconds = {"median": timing.median, "low": timing.high, "high": timing.low}
    return {name: amount / (1e-3 * milliseconds) for name, milliseconds in seconds.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ceilings", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds (default 20)")
    parser.add_argument("--json", type=Path, help="write machine and numbers there")
    options = parser.parse_args(arguments)
    found = measure(options.rounds, 1 if DEVICE.type == "cuda" else 16)
    for name, rate in found.items():
        print(f"{name:26}{rate['median']:10.1f}  ({rate['low']:.1f}-{rate['high']:.1f})")
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine(), "ceilings": found}))
    return 0
