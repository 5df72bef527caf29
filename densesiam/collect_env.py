"""What this installation is and what it can do: ``python -m densesiam.collect_env``.

Paste its output into a bug report.
"""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import densesiam
from densesiam import _devices, _libraries
from densesiam._libraries import cpu_capability, find
from densesiam.ops._backends import BACKENDS, kernels, missing


def collect_env() -> str:
    """The report, one fact a line."""
    lines = [
        f"densesiam {densesiam.__version__}",
        f"python {platform.python_version()} on {platform.platform()}",
        f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'})",
    ]
    lines += [f"{name} {_version(name)}" for name in ("triton", "numpy", "torchvision", "timm")]
    lines += _gpu_lines()
    lines.append(
        f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    )
    absent = "not loaded" if find("_cpu") else "not built"
    lines.append(f"CPU kernels: {cpu_capability() or absent}")
    lines += ["", *_build_lines(), "", "backends:"]
    for name in BACKENDS:
        reason = missing(name)
        state = f"no: {reason}" if reason else f"yes: {', '.join(kernels(name))}"
        lines.append(f"  {name}: {state}")
    return "\n".join(lines)


def _gpu_lines() -> list[str]:
    driver = _devices.driver_version()
    known = f"CUDA up to {driver[0]}.{driver[1]}" if driver else "none"
    lines = [f"NVIDIA driver: {known}", f"GPUs: {_devices.count() or 'none'}"]
    for index in range(_devices.count()):
        major, minor = torch.cuda.get_device_capability(index)
        line = f"  cuda:{index}: {torch.cuda.get_device_name(index)} ({major}.{minor})"
        if find("_cuda"):
            line += f", CUDA kernels: {_devices.problem(index) or 'yes'}"
        lines.append(line)
    return lines


def _build_lines() -> list[str]:
    info = _libraries.build_info()
    if info is None:
        return ["build: none (no compiler was found when the package was installed)"]
    return ["build:", *(f"  {key}: {value or 'none'}" for key, value in info.items())]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(collect_env())
