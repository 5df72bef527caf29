"""Tests of what only a GPU can show. Without one the same lines run on its stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from benchmarks import device

THERE = pytest.mark.gpu if device.gpu else ()


@dataclass(frozen=True)
class Gpu:
    """Where a test runs.

    Attributes:
        device: of its tensors.
        backend: that is active.
        cuda: ``torch.cuda`` or its stand-in: streams, graphs, events, memory.
    """

    device: torch.device
    backend: str
    cuda: Any


@pytest.fixture(
    params=[
        "emulator",  # the CUDA kernels' own source, on the CPU
        pytest.param("triton", marks=THERE),  # interpreted where there is no GPU
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def gpu(request, monkeypatch) -> Iterator[Gpu]:
    """A GPU's backend, or the emulator in its place."""
    # Here, because Triton's interpreter must be chosen before they are imported (conftest.py).
    from densesiam.ops import _checks, use_backend
    from densesiam.ops._backends import missing
    from tests.emulator import emulated
    from tests.stand_in import StandIn

    backend, where = request.param, device.DEVICE
    with ExitStack() as stack:
        if backend == "emulator":
            stack.enter_context(emulated())
            backend, where = "cpu", torch.device("cpu")
        if where.type == "cpu":
            monkeypatch.setattr(device, "gpu", StandIn())
            monkeypatch.setattr(_checks, "_CHECKED", set())  # on a GPU values are not looked at
        if backend == "triton" and (reason := missing(backend)) is not None:
            pytest.skip(f"triton cannot be used: {reason}")
        stack.enter_context(use_backend(backend))
        yield Gpu(where, backend, device.gpu)
