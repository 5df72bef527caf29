import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device, measure
from benchmarks.measure import Call, Timing, extra_memory, time_side_by_side


def test_timing_is_median_and_quartiles():
    assert Timing.of([5, 1, 2, 3, 4]) == Timing(3, 2, 4)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where they are added."""
    passed = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(measure, "_now", lambda: passed.seconds)
    monkeypatch.setattr(measure, "_between", lambda start, end: 1e3 * (end - start))
    return passed


def test_forward_is_timed_apart_from_forward_and_backward(clock):
    def takes(seconds):
        clock.seconds += seconds

    call = Call(lambda i: takes(0.25), lambda i, result: takes(0.5))
    forward, total = time_side_by_side({"one": call}, rounds=3)["one"]
    assert forward == Timing(250, 250, 250)
    assert total == Timing(750, 750, 750)


def test_without_backward_both_are_the_same(clock):
    def takes(i):
        clock.seconds += 0.25

    forward, total = time_side_by_side({"one": Call(takes)}, rounds=3)["one"]
    assert forward == total == Timing(250, 250, 250)


def test_the_hosts_clock_is_in_milliseconds():
    if device.gpu:
        pytest.skip("a GPU has its own clock")
    start = measure._now()
    assert measure._between(start, start + 2) == pytest.approx(2000)  # start has digits of its own
    assert measure._between(start, measure._now()) >= 0


def test_rounds_are_interleaved_and_each_call_rotates_the_inputs():
    seen = []
    calls = {
        name: Call(lambda i, name=name: seen.append((name, i)), lambda i, result: seen.append("b"))
        for name in "xy"
    }
    time_side_by_side(calls, rounds=4, inputs=3)
    rounds = [seen[k : k + 4] for k in range(0, len(seen), 4)]
    assert len(rounds) == measure.WARM_UP + 4
    assert [r[0][0] + r[2][0] for r in rounds] == ["xy"] * 6
    assert [i for r in rounds for _, i in (r[0], r[2])] == [0, 1, 2] * 4


def test_warm_up_is_not_counted(clock):
    state = iter([10.0] * measure.WARM_UP + [0.25] * 5)

    def takes(i):
        clock.seconds += next(state)

    forward, _ = time_side_by_side({"one": Call(takes)}, rounds=5)["one"]
    assert forward.high == 250


def test_memory_beyond_the_results():
    x = torch.zeros(1000, 100)  # 400 kB

    def run():
        kept = x + 1  # a result
        first = x + 2
        second = x + 3  # two at a time at the most
        del first
        third = x + 4
        return [kept, (second + third).sum()]

    # second + third allocates the third that is held at the peak.
    assert extra_memory(run) == pytest.approx(3 * x.nbytes, abs=64)


def test_a_result_allocated_last_does_not_hide_what_was_held_before():
    x = torch.zeros(1000, 100)

    def run():
        temporary = x + 1
        total = temporary.sum()
        del temporary
        return [x + total]

    assert extra_memory(run) == pytest.approx(x.nbytes, abs=64)


def test_memory_of_autograd():
    x = torch.zeros(1000, 100, requires_grad=True)

    def run():
        result = x.exp().sin()  # keeps x.exp() for backward
        (gradient,) = torch.autograd.grad(result, [x], torch.ones_like(x))
        return [result, gradient]

    # exp is kept; backward holds the cotangent of ones, and the cosine or the product beside it.
    assert 2 * x.nbytes <= extra_memory(run) <= 4 * x.nbytes + 64


def test_small_inputs_get_more_sets():
    assert measure.inputs_for_cold_caches(1 << 30) == measure.FEWEST_INPUTS
    assert measure.inputs_for_cold_caches(0) == measure.MOST_INPUTS
    eighth = measure.HOST_CACHE // 8
    if not device.gpu:
        assert measure.inputs_for_cold_caches(eighth) == 8


def test_a_gpu_tells_how_large_its_cache_is(gpu):
    cache = 2 * gpu.cuda.get_device_properties().L2_cache_size
    assert measure.inputs_for_cold_caches(cache // 4) == 4


def test_clone_moves_half_in_and_half_out():
    call = measure.clone_of(1000)
    assert call.forward(0).nbytes == 500
    assert call.forward(10**6).nbytes == 500


def test_graphs_replay(gpu):
    x = [torch.randn(1 << 23, device=gpu.device, requires_grad=True) for _ in range(3)]
    call = Call(
        lambda i: x[i].exp(),
        lambda i, result: torch.autograd.grad(result, [x[i]], torch.ones_like(result)),
    )
    graph = measure.captured(call, 3)
    assert graph is not None
    forward, total = time_side_by_side({"graph": graph}, rounds=5)["graph"]
    assert 0 < forward.median < total.median
    assert math.isfinite(total.high)


def test_what_waits_for_the_device_is_not_captured(gpu):
    x = torch.ones(8, device=gpu.device)
    with pytest.raises(RuntimeError):
        measure.captured(Call(lambda i: x * x.sum().item()), 1)
    assert float(x.sum()) == 8  # the device is still usable


def test_a_capture_that_breaks_off_leaves_nothing_behind(gpu):
    calls = []

    def late(i):
        """Draws numbers, and waits for the device first when it is captured."""
        calls.append(i)
        numbers = torch.rand(8, device=gpu.device)
        return numbers * numbers.sum().item() if len(calls) > 4 else numbers

    stream = gpu.cuda.current_stream()
    with pytest.raises(RuntimeError):
        measure.captured(Call(late), 1)
    assert len(calls) == 5
    assert gpu.cuda.current_stream() == stream
    assert float(torch.rand(8, device=gpu.device).sum()) > 0
    measure.captured(Call(lambda i: torch.rand(8, device=gpu.device)), 1).forward(0)
