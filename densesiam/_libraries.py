"""Loading the compiled libraries, and saying plainly why one is not there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

_BUILD_HINT = (
    "Build it with `pip install --no-build-isolation -e .` in the source tree "
    "(`python -m densesiam.collect_env` shows what was found)"
)


def build_info() -> dict[str, Any] | None:
    """What this build holds: compiler, flags, CUDA version, architectures. None without a build."""
    try:
        return dict(importlib.import_module("densesiam._info").build)
    except ImportError:
        return None


def load(library: str) -> str | None:
    """Load ``densesiam/<library>.abi3.so`` into the dispatcher.

    Returns:
        None when it is loaded, else why it is not and what to do.
    """
    path = next(Path(__file__).parent.glob(f"{library}*.so"), None)
    if path is None:
        return f"it was not built. {_BUILD_HINT}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        info = build_info() or {}
        return (
            f"{path.name} could not be loaded: {error}. It was built for torch "
            f"{info.get('torch', 'of an unknown version')}, and this is torch {torch.__version__}. "
            f"{_BUILD_HINT}"
        )
    return None
