"""Loading the compiled libraries, and saying plainly why one is not there."""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

import torch

import densesiam

_BUILD_HINT = (
    "Build it with `pip install --no-build-isolation -e .` in the source tree "
    "(`python -m densesiam.collect_env` shows what was found)"
)
_CAPABILITIES = ("baseline", "avx2", "avx512")
_loaded: dict[str, Path] = {}


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


def interface_of(path: Path) -> str | None:
    """Fingerprint of the schemas that a library was compiled for; None if it names none.

    It is read from the file: a library that is loaded has registered its kernels already.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = re.search(rb"densesiam interface (\w{16});", content)
            return found[1].decode() if found else None


def load(library: str, interface: str) -> str | None:
    """Load a compiled library into the dispatcher.

    Args:
        library: its name, ``"_cpu"`` or ``"_cuda"``.
        interface: fingerprint of the operators' schemas; a library of others is left alone.

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
    found = interface_of(path)
    if found != interface:
        of_it = f"interface {found}" if found else "an interface without a name"
        return (
            f"{path.name} was built from another version of densesiam: it has {of_it}, and this "
            f"version, {densesiam.__version__}, calls {interface}. Build it again with `python "
            "setup.py build_ext --inplace` in the source tree, or install the package anew"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        info = build_info() or {}
        return (
            f"{path.name} could not be loaded: {error.__cause__ or error}. It was built for torch "
            f"{info.get('torch', 'of an unknown version')}, and this is torch {torch.__version__}. "
            f"{_BUILD_HINT}"
        )
    _loaded[library] = path
    return None


def cpu_capability() -> str | None:
    """Which instruction set the CPU kernels use here.

    Returns:
        ``"avx512"``, ``"avx2"`` or ``"baseline"`` on x86-64, ``"portable"`` elsewhere; None where
        they were not built, or cannot be loaded.
    """
    if "_cpu" not in _loaded:  # `load` has the reason
        return None
    capability = ctypes.CDLL(str(_loaded["_cpu"])).densesiam_cpu_capability
    capability.restype = ctypes.c_char_p
    return capability().decode()
