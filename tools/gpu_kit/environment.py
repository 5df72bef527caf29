"""What a machine is: ``python -m tools.gpu_kit.environment --json FILE``.

Each fact is asked for on its own; one that cannot be had says why.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "triton", "numpy", "torchvision", "lightning", "timm", "torchmetrics", "scipy"),
    *("scikit-image", "scikit-learn", "tensorboard", "matplotlib", "pillow", "jsonargparse"),
    *("pycocotools", "onnx", "onnxruntime", "onnxscript", "hypothesis", "expecttest", "pytest"),
    *("pytest-xdist", "ninja", "pybind11", "setuptools", "pip"),
)
VARIABLES = ("CUDA", "NVIDIA", "TORCH", "TRITON", "LD_LIBRARY_PATH", "PATH", "OMP", "DENSESIAM")
COMMANDS = {
    "nvidia-smi": ["nvidia-smi"],
    "nvidia-smi -q": ["nvidia-smi", "-q", "-d", "CLOCK,PERFORMANCE,POWER,ECC"],
    "nvcc": ["nvcc", "--version"],
    "compiler": ["c++", "--version"],
    "memory": ["free", "-h"],
    "disk": ["df", "-h"],
}


def gpus() -> list[dict[str, Any]]:
    """Every GPU that torch finds."""
    from benchmarks import device

    if device.gpu is None:
        return []
    found = []
    for index in range(device.gpu.device_count()):
        properties = device.gpu.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
                "cache": properties.L2_cache_size,
            }
        )
    return found


def torch_says() -> dict[str, Any]:
    """Versions that torch was built with."""
    import torch

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def backends() -> dict[str, str | None]:
    """Each of our backends: None where it can be used, else why not."""
    from densesiam.ops._backends import BACKENDS, missing

    return {name: missing(name) for name in BACKENDS}


def build() -> dict[str, Any] | None:
    """The build's own report."""
    from densesiam._libraries import build_info

    return build_info()


def versions() -> dict[str, str]:
    """Versions of the packages that matter here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, memory, Python."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "tools": {name: shutil.which(name) for name in ("ninja", "nvcc", "c++", "ncu")},
    }


def said(command: list[str]) -> str:
    """What a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, errors="replace")
    return (done.stdout + done.stderr).strip()


def facts() -> dict[str, Any]:
    """Everything, each with the reason where it cannot be told."""
    asked: dict[str, Callable[[], Any]] = {
        "torch": torch_says,
        "gpus": gpus,
        "backends": backends,
        "build": build,
        "packages": versions,
        "machine": machine,
        "variables": lambda: {k: v for k, v in os.environ.items() if k.startswith(VARIABLES)},
    }
    asked |= {name: lambda command=command: said(command) for name, command in COMMANDS.items()}
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except Exception as error:  # whatever it is, the other facts are wanted
            found[name] = f"cannot be told: {type(error).__name__}: {error}"
    return found


def main() -> None:
    """Ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    text = json.dumps(facts(), indent=1, default=str)
    options.json.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
