"""The Triton backend: its operators, bound to the kernels in ``densesiam.kernels`` on first use."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import densesiam
from densesiam.ops._operations import NAMESPACE, OPERATIONS, register_namespace

OLDEST = (3, 6)
"""The oldest Triton that the kernels run on: torch 2.10 brings it."""

_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str | None:
    """Register the operators; None, or why no process can use them."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (`pip install triton`)"
    found = _version("triton")
    if found is not None and found < OLDEST:
        return (
            f"its kernels need Triton {_dotted(OLDEST)} or newer, and this is {_dotted(found)} "
            "(`pip install --upgrade triton`)"
        )
    numpy = _version("numpy")
    if _INTERPRET and found == (3, 6) and numpy is not None and numpy >= (2, 4):
        return (
            f"the interpreter of Triton 3.6 needs NumPy older than 2.4, and this is "
            f"{_dotted(numpy)} (`pip install 'numpy<2.4'`)"
        )
    namespace = f"{NAMESPACE}_triton"
    register_namespace(namespace)
    for op in kernels():
        for name in OPERATIONS[op].operators:
            torch.library.impl(f"{namespace}::{name}", "default", _lazy(op, name))
    return None


def kernels() -> frozenset[str]:
    """Operations that have Triton kernels, one module of ``densesiam.kernels`` each."""
    return frozenset(name for name, operation in OPERATIONS.items() if operation.triton)


def _version(package: str) -> tuple[int, ...] | None:
    """(major, minor) of a package, which is not imported; None where it has another name."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in version.split(".")[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _lazy(op: str, name: str) -> Callable[..., Any]:
    """Triton itself is imported with the first call."""

    def call(*args: Any) -> Any:
        return getattr(load_module(op), name)(*args)

    return call


def load_module(op: str) -> Any:
    """The module ``densesiam.kernels.<op>``, also from a source tree that was never installed."""
    name = f"{densesiam.__name__}.kernels"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        folder = Path(__file__).parents[2] / "kernels"
        spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{name}.{op}")
