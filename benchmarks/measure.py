"""How it is measured: interleaved rounds over rotating inputs, and the peak of extra memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

INPUT_SETS = 3  # rotated, so that one call's inputs are not still cached from the last


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one candidate."""

    median: float
    low: float
    high: float


def time_side_by_side(
    candidates: Mapping[str, Callable[[int], object]], rounds: int
) -> dict[str, Timing]:
    """Median and quartiles of each candidate; every round runs each of them once.

    Args:
        candidates: by name, a function of the round's number (to choose its inputs).
        rounds: measured rounds, after two of warm-up.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(-2, rounds):
        for name, candidate in candidates.items():
            _synchronise()
            start = time.perf_counter()
            candidate(round_number % INPUT_SETS)
            _synchronise()
            if round_number >= 0:
                samples[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: Timing(*(float(q) for q in np.percentile(values, [50, 25, 75])))
        for name, values in samples.items()
    }


def forward_backward(
    function: Callable[..., Tensor],
    args: list[Tensor],
    differentiable: tuple[int, ...],
    cotangent: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Result and gradients toward the differentiable arguments."""
    result = function(*args)
    if not differentiable:
        return result, ()
    leaves = [args[i] for i in differentiable]
    return result, torch.autograd.grad(result, leaves, cotangent)


def extra_memory(run: Callable[[], tuple[Tensor, tuple[Tensor, ...]]]) -> int:
    """Peak bytes held during a call beyond outputs and gradients, from the allocator's events."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result, grads = run()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(profile_memory=True) as profile:
            result, grads = run()
        held = peak = 0
        events = profile.profiler.kineto_results.events()
        for event in sorted(events, key=lambda e: e.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
    outputs = sum(t.numel() * t.element_size() for t in (result, *grads))
    return max(0, peak - outputs)


def clone_of(size: int, device: torch.device) -> Callable[[int], object]:
    """The ceiling: torch.clone moving that many bytes, half of them read and half written."""
    sources = [torch.empty(size // 2, dtype=torch.uint8, device=device) for _ in range(INPUT_SETS)]
    for source in sources:
        source.fill_(1)
    return lambda i: sources[i].clone()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
