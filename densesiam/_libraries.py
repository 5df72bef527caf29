"""Loading the compiled libraries, and saying plainly why one is not there."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
from pathlib import Path
from typing import Any

import torch

_BUILD_HINT = (
    "Build it with `pip install --no-build-isolation -e .` in the source tree "
    "(`python -m densesiam.collect_env` shows what was found)"
)
_CAPABILITIES = ("baseline", "avx2", "avx512")


def build_info() -> dict[str, Any] | None:
    """What this build holds: compiler, flags, CUDA version, architectures. None without a build."""
    try:
        return dict(importlib.import_module("densesiam._info").build)
    except ImportError:  # none, or of another Python than this: a copy of it may have come along
        report = Path(__file__).parent / "_info.json"
        return json.loads(report.read_text()) if report.exists() else None


def find(library: str) -> Path | None:
    """``densesiam/<library>.abi3.so``, if it was built."""
    return next(Path(__file__).parent.glob(f"{library}*.so"), None)


def load(library: str) -> str | None:
    """Load a compiled library into the dispatcher.

    Returns:
        None when it is loaded, else why it is not and what to do.

    Raises:
        ValueError: the environment variable DENSESIAM_CPU_CAPABILITY names no instruction set.
    """
    given = os.environ.get("DENSESIAM_CPU_CAPABILITY")
    if given and given not in _CAPABILITIES:
        raise ValueError(
            f"DENSESIAM_CPU_CAPABILITY must be one of {', '.join(_CAPABILITIES)}, got {given!r}"
        )
    path = find(library)
    if path is None:
        return f"it was not built. {_BUILD_HINT}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        info = build_info() or {}
        return (
            f"{path.name} could not be loaded: {error.__cause__ or error}. It was built for torch "
            f"{info.get('torch', 'of an unknown version')}, and this is torch {torch.__version__}. "
            f"{_BUILD_HINT}"
        )
    return None


def cpu_capability() -> str | None:
    """Which instruction set the CPU kernels use here.

    Returns:
        ``"avx512"``, ``"avx2"`` or ``"baseline"`` on x86-64, ``"portable"`` elsewhere; None where
        they were not built, or cannot be loaded.
    """
    path = find("_cpu")
    if path is None:
        return None
    try:
        capability = ctypes.CDLL(str(path)).densesiam_cpu_capability
    except OSError:  # built for another torch: `load` has the reason
        return None
    capability.restype = ctypes.c_char_p
    return capability().decode()
