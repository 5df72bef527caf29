"""The device that is measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where tensors live."""

gpu: Any = torch.cuda if torch.cuda.is_available() else None
"""``torch.cuda``, or None without a GPU. Streams, graphs, events and memory are asked of it alone,
so that a stand-in can take its place and the same lines run without a GPU (tests/stand_in.py)."""

TRACED = ("kernel", "gpu_memset", "gpu_memcpy")


def trace(call: Callable[[], object]) -> list[dict[str, Any]]:
    """What a call runs on the GPU, in order: events as torch's profiler exports them.

    It needs no permission to read the GPU's counters, as Nsight Compute does. Where the profiler
    cannot trace the GPU there are no events.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        call()
        if gpu:
            gpu.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return sorted((e for e in events if e.get("cat") in TRACED), key=lambda event: event["ts"])
