"""How it is measured: interleaved rounds over rotating inputs, and the peak of extra memory."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import device
from benchmarks.device import DEVICE

WARM_UP = 2  # rounds
FEWEST_INPUTS = 3  # sets of inputs, rotated so that one call's are not still cached from the last
MOST_INPUTS = 24
HOST_CACHE = 32 << 20  # bytes: what a core's own caches and its share of the last level may hold


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one candidate: the median and the quartiles of its rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Summarise the rounds."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Call:
    """One candidate, on the i-th set of inputs.

    Attributes:
        forward: what is computed.
        backward: from the result to the gradients; None where there are none.
        again: whether `backward` computes the result anew, as a captured graph of both does.
    """

    forward: Callable[[int], Any]
    backward: Callable[[int, Any], Any] | None = None
    again: bool = False

    def once(self) -> list[Tensor]:
        """Everything that one call returns."""
        result = self.forward(0)
        return [result, *(self.backward(0, result) if self.backward else ())]


def time_side_by_side(
    calls: Mapping[str, Call], rounds: int, inputs: int = FEWEST_INPUTS
) -> dict[str, tuple[Timing, Timing]]:
    """Time of each candidate; every round runs each of them once.

    Host time on a CPU, events on the current stream on a GPU. Each call takes the set of inputs
    that has not been used for the longest time: of one set for a whole round, all calls but the
    first would find a part in the caches.

    Args:
        calls: the candidates by name.
        rounds: measured rounds, after `WARM_UP` others.
        inputs: sets of inputs to rotate through.

    Returns:
        By name, forward alone, and forward with backward (the same where there is no backward).
    """
    forward: dict[str, list[float]] = {name: [] for name in calls}
    total: dict[str, list[float]] = {name: [] for name in calls}
    turns = itertools.cycle(range(inputs))
    for number in range(-WARM_UP, rounds):
        for name, call in calls.items():
            i = next(turns)
            _synchronise()
            start = _now()
            result = call.forward(i)
            middle = _now()
            gradients = call.backward(i, result) if call.backward else None
            end = _now()
            _synchronise()
            del result, gradients  # to free them is not part of it
            if number >= 0:
                forward[name].append(_between(start, middle))
                total[name].append(_between(middle if call.again else start, end))
    return {name: (Timing.of(forward[name]), Timing.of(total[name])) for name in calls}


def inputs_for_cold_caches(size: int) -> int:
    """How many sets of inputs of that many bytes it takes to overflow the caches."""
    cache = HOST_CACHE
    if device.gpu:
        cache = 2 * device.gpu.get_device_properties().L2_cache_size
    return min(max(FEWEST_INPUTS, -(-cache // max(size, 1))), MOST_INPUTS)


def captured(call: Call, inputs: int) -> Call:
    """The candidate as CUDA graphs, one for each set of inputs, which are replayed.

    A replay shows what the device takes, without Python and launches. Graphs keep their memory, so
    that of one candidate is shared by all of its graphs.

    Raises:
        RuntimeError: it cannot be captured, because it waits for the device.
    """
    stream = device.gpu.current_stream()
    try:
        forward = _capture(lambda i: call.forward(i), inputs)
        both = None
        if (backward := call.backward) is not None:
            both = _capture(lambda i: backward(i, call.forward(i)), inputs)
    except RuntimeError:
        # A capture that broke off leaves its stream behind as the current one, and torch's random
        # numbers captured, which a whole capture ends.
        device.gpu.set_stream(stream)
        device.gpu.synchronize()
        with device.gpu.graph(device.gpu.CUDAGraph()):
            torch.zeros(1, device=DEVICE)
        raise
    if both is None:
        return Call(lambda i: forward[i].replay())
    return Call(lambda i: forward[i].replay(), lambda i, _: both[i].replay(), again=True)


def _capture(function: Callable[[int], Any], inputs: int) -> list[Any]:
    gpu = device.gpu
    stream = gpu.Stream()
    stream.wait_stream(gpu.current_stream())
    with gpu.stream(stream):
        for _ in range(3):  # lazy initialisation and autotuning come before
            function(0)
        # What waits for the device fails here: a capture that is broken off leaves traces.
        gpu.set_sync_debug_mode("error")
        try:
            function(0)
        finally:
            gpu.set_sync_debug_mode("default")
    gpu.current_stream().wait_stream(stream)
    graphs, pool = [], None
    for i in range(inputs):
        graph = gpu.CUDAGraph()
        with gpu.graph(graph, pool=pool):
            function(i)
        pool = graph.pool()
        graphs.append(graph)
    return graphs


def extra_memory(run: Callable[[], Sequence[Tensor]]) -> int:
    """Peak of the bytes held during a call, beyond its inputs and beyond what it returns.

    Read from the allocator's events. What kernels keep on their stacks is not in it.

    Args:
        run: the call, not its first; returns its results and gradients.
    """
    # A GPU's allocator reports from the host: its own tracing tools may be missing.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        returned = run()
        _synchronise()
    events = sorted(_allocations(profile))
    own = {t.untyped_storage().data_ptr() for t in returned}
    last = {address: time for time, address, size in events if size > 0 and address in own}
    held = peak = 0
    for moment, address, size in events:
        if last.get(address) == moment:
            continue  # it is one of the results
        held += size
        peak = max(peak, held)
    return peak


def clone_of(size: int) -> Call:
    """The ceiling: torch.clone moving that many bytes, half of them read and half written."""
    inputs = inputs_for_cold_caches(size // 2)
    sources = [torch.ones(size // 2, dtype=torch.uint8, device=DEVICE) for _ in range(inputs)]
    return Call(lambda i: sources[i % inputs].clone())


def _allocations(profile: Any) -> list[tuple[int, int, int]]:
    """(nanoseconds, address, bytes), negative where memory is freed."""
    kind = torch._C._profiler._EventType.Allocation
    found = []
    stack = list(profile.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.typed[0] == kind:
            fields = event.typed[1]
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return found


def _now() -> Any:
    if not device.gpu:
        # One thread's time of the processor is the same whoever else computes.
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
    event = device.gpu.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    """Milliseconds."""
    return start.elapsed_time(end) if device.gpu else 1e3 * (end - start)


def _synchronise() -> None:
    if device.gpu:
        device.gpu.synchronize()
