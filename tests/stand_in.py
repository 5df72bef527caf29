"""A GPU's place taken on a machine without one, so that the lines that ask a GPU run there too.

    python -m tests.stand_in MODULE ARGUMENTS     as ``python -m MODULE ARGUMENTS``
    python -m pytest -p tests.stand_in ...        the same for tests

The backend ``cuda`` is then the kernels' own source under the emulator, on tensors in main memory,
and `StandIn` takes the place of ``torch.cuda``. What it cannot show: that anything runs at the same
time as anything else.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported by anything

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from benchmarks.device import trace as _trace

WAITING = (
    torch.ops.aten._local_scalar_dense,  # a number comes from the device
    torch.ops.aten.nonzero,  # a size does
    torch.ops.aten.bincount,
    torch.ops.aten.masked_select,
    torch.ops.aten.lift_fresh,  # torch.tensor: numbers go to it, from memory that it cannot read
)
"""Operators that wait for the device."""


class _Refusing(TorchDispatchMode):
    """Refuses operators that wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # A mask as an index is a size as well.
        indices = args[1] if func.overloadpacket == torch.ops.aten.index else ()
        mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if mask or func.overloadpacket in WAITING:
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class CUDAGraph(_Refusing):
    """Keeps the operators of a capture with their arguments, and runs them again at each replay."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, results))
        return results

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, results in self.calls:
                again, _ = tree_flatten(func(*args, **kwargs))
                for old, new in zip(tree_flatten(results)[0], again, strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def pool(self):
        return (0, 0)


class Event:
    """A moment of the host's clock."""

    def __init__(self, enable_timing=False):
        self.enable_timing = enable_timing

    def record(self, stream=None):
        self.moment = time.perf_counter()

    def elapsed_time(self, other):
        assert self.enable_timing
        return 1e3 * (other.moment - self.moment)


class Stream:
    """A name: everything runs at once."""

    def wait_stream(self, other):
        assert isinstance(other, Stream)

    def synchronize(self):
        pass


class StandIn:
    """What is used of ``torch.cuda``."""

    CUDAGraph, Event, Stream = CUDAGraph, Event, Stream
    profiler = SimpleNamespace(start=lambda: None, stop=lambda: None)

    def __init__(self):
        self._current = Stream()
        self._refusing = None

    def device_count(self):
        return 1

    def get_device_name(self, device=None):
        return self.get_device_properties().name

    def get_device_properties(self, device=None):
        return SimpleNamespace(
            name="stand-in (the emulator, in main memory)",
            major=9,
            minor=0,
            total_memory=8 << 30,
            multi_processor_count=1,
            L2_cache_size=1 << 10,  # so that few sets of inputs rotate
        )

    def mem_get_info(self, device=None):
        return (4 << 30, 8 << 30)

    def synchronize(self, device=None):
        pass

    def current_stream(self, device=None):
        return self._current

    def set_stream(self, stream):
        self._current = stream

    @contextmanager
    def stream(self, stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    @contextmanager
    def graph(self, graph, pool=None) -> Iterator[None]:
        before, self._current = self._current, Stream()
        with graph:
            yield
        self._current = before  # as torch does: not where the capture broke off

    def set_sync_debug_mode(self, mode):
        if self._refusing is not None:
            self._refusing.__exit__(None, None, None)
            self._refusing = None
        if mode == "error":
            self._refusing = _Refusing()
            self._refusing.__enter__()

    def _sleep(self, cycles):
        pass


def trace(call: Callable[[], object]) -> list[dict[str, Any]]:
    """`benchmarks.device.trace`, with the emulator's launches where a GPU's would be."""
    from tests.emulator.machine_code import observing

    events: list[dict[str, Any]] = []

    def observe(name: str, launch: Any) -> bool:
        told = {"grid": launch.grid, "block": launch.block, "shared memory": launch.shared}
        events.append({"cat": "kernel", "name": f"densesiam::{name}", "dur": 0.0, "args": told})
        return False  # the emulator runs it

    with observing(observe):
        return [*_trace(call), *events]


def small(shape: Any) -> Any:
    """A benchmark's shape with its kind kept and its size gone."""
    return replace(
        shape,
        channels=min(shape.channels, 12),
        classes=min(shape.classes, 5),
        height=10,
        width=10,
        size=min(shape.size, 10),
    )


def shrink() -> None:
    """Sizes of which the emulator and Triton's interpreter take seconds, in place of a GPU's."""
    from benchmarks import ceilings, composites, host, ops, training_step

    for module in ops.MODULES.values():
        module.SHAPES = tuple(small(shape) for shape in module.SHAPES)
    composites.segmentation.SHAPES = tuple(
        replace(shape, height=4, width=4, size=4) for shape in composites.segmentation.SHAPES
    )
    composites.pretraining.SHAPES = tuple(
        replace(shape, channels=512, classes=64) for shape in composites.pretraining.SHAPES
    )
    ceilings.COPIED, ceilings.SIDE = 1 << 20, 64
    host.CALLS = 1
    training_step.STEPS = {"tiny": (training_step.demo_model, 2, 64, 64)}


def activate() -> None:
    """Take a GPU's place for the rest of the process."""
    from benchmarks import device
    from densesiam import _devices
    from densesiam.ops import _backends, _checks
    from densesiam.ops._operations import OPERATIONS
    from tests.emulator import NAMESPACE, load_emulator

    if device.gpu is not None:
        return
    load_emulator()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    _backends.NAMESPACES["cuda"] = NAMESPACE
    _backends._KERNELS["cuda"] = frozenset(
        op for op in OPERATIONS if has_kernel(f"{NAMESPACE}::{op}", "CPU")
    )
    _backends._MISSING["cuda"] = None
    _devices.count = lambda: 1
    _devices.problem = _devices._problem_of_machine = lambda *_: None
    _backends._SERVES["cuda"] = "cpu"
    _checks._CHECKED = set()  # on a GPU values are not looked at
    device.gpu, device.trace = StandIn(), trace


def pytest_configure(config: Any) -> None:
    """As a plugin of pytest's."""
    activate()


def main() -> None:
    """As a command."""
    activate()
    shrink()
    module, *arguments = sys.argv[1:]
    plugin = ["-p", "tests.stand_in"] if module == "pytest" else []
    sys.argv = [module, *plugin, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
