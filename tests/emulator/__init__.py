"""The CUDA kernels on the CPU: ``with emulated():`` runs the public operations on them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from densesiam.ops import _backends, use_backend
from densesiam.ops._operations import OPERATIONS, register_namespace
from tests.emulator.build import build_emulator

NAMESPACE = "densesiam_emulator"
ORDERS = ("forward", "reverse", "shuffled")


@dataclass(frozen=True)
class Traffic:
    """Global memory that one kernel launch touched.

    Attributes:
        loaded: bytes of the distinct 32-byte sectors that it read.
        stored: the same for writes.
        requested_loads: bytes that its threads asked for, repetitions counted.
        requested_stores: the same for writes.
    """

    loaded: int
    stored: int
    requested_loads: int
    requested_stores: int


@cache
def load_emulator() -> ctypes.CDLL:
    """Build the library if need be, and add its operators to `NAMESPACE`.

    The environment's ``DENSESIAM_EMULATOR`` names the build, "plain" by default: one process takes
    one, as their operators have the same names.
    """
    path = build_emulator(os.environ.get("DENSESIAM_EMULATOR", "plain"))
    register_namespace(NAMESPACE)
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


@contextmanager
def emulated(order: str = "forward", seed: int = 0) -> Iterator[None]:
    """Run the public operations on the emulated CUDA kernels, given tensors on the CPU.

    Args:
        order: in which blocks, and the threads of a block, take turns.
        seed: of the shuffled order.
    """
    library = load_emulator()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    kernels = frozenset(op for op in OPERATIONS if has_kernel(f"{NAMESPACE}::{op}", "CPU"))
    library.emulator_set_order(ORDERS.index(order), ctypes.c_uint64(seed))
    try:
        with served_by(NAMESPACE, kernels, _backends._MOST_ELEMENTS["cuda"]):
            yield
    finally:
        library.emulator_set_order(0, ctypes.c_uint64(0))


@contextmanager
def served_by(namespace: str, kernels: frozenset[str], most: int | None = None) -> Iterator[None]:
    """Run the public operations on the operators of a namespace, given tensors on the CPU.

    Args:
        namespace: of the dispatcher.
        kernels: the operations that it has.
        most: elements of an image, at the most.
    """
    replaced: tuple[tuple[dict[str, Any], Any], ...] = (
        (_backends.NAMESPACES, namespace),
        (_backends._KERNELS, kernels),
        (_backends._MISSING, None),
        (_backends._MOST_ELEMENTS, most),
    )
    before = [table["cpu"] for table, _ in replaced]
    try:
        for table, value in replaced:
            table["cpu"] = value
        with use_backend("cpu"):
            yield
    finally:
        for (table, _), value in zip(replaced, before, strict=True):
            table["cpu"] = value


@contextmanager
def traced() -> Iterator[list[Traffic]]:
    """Collect the traffic of every launch inside the block; the list is filled at its end."""
    library = load_emulator()
    launches: list[Traffic] = []
    library.emulator_trace(True)
    try:
        yield launches
    finally:
        library.emulator_trace(False)
        library.emulator_launches.restype = ctypes.c_size_t
        for launch in range(library.emulator_launches()):
            numbers = (ctypes.c_uint64 * 4)()
            library.emulator_traffic(ctypes.c_size_t(launch), numbers)
            sectors_read, sectors_written, read, written = numbers
            launches.append(Traffic(32 * sectors_read, 32 * sectors_written, read, written))
