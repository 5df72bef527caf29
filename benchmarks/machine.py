"""What the numbers belong to."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks import device
from densesiam import __version__
from densesiam._libraries import build_info


def describe_machine() -> dict[str, Any]:
    """Device, threads, versions, commit and compiler flags."""
    info = build_info() or {}
    return {
        "device": device.gpu.get_device_name() if device.gpu else _processor(),
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",  # of other programs, if it is not near 0
        "densesiam": f"{__version__} ({_commit()})",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": info.get("compiler", "none"),
        "flags": info.get("cxx_flags", "none"),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "no commit"
