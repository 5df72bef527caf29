"""The Triton backend: its operators, bound to the kernels in ``densesiam.kernels`` on first use."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import densesiam
from densesiam.ops._registry import NAMESPACE, register_namespace
from densesiam.ops.schema import SCHEMAS

KERNELS = frozenset(
    {
        "label_map",
        "overlap_sample",
        "overlap_similarity",
        "pixel_similarity",
        "pseudo_label_loss",
        "region_pool",
    }
)
"""Operations that have Triton kernels, one module of ``densesiam.kernels`` each."""

NO_FLOAT64: frozenset[str] = frozenset()
"""Those of them that cannot take float64."""

OLDEST = (3, 6)
"""The oldest Triton that the kernels run on: torch 2.10 brings it."""


def missing() -> str | None:
    """Register the operators; None, or why no process can use them."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (`pip install triton`)"
    if (found := _version()) is not None and found < OLDEST:
        return (
            f"its kernels need Triton {_dotted(OLDEST)} or newer, and this is {_dotted(found)} "
            "(`pip install --upgrade triton`)"
        )
    namespace = f"{NAMESPACE}_triton"
    register_namespace(namespace)
    for op in sorted(KERNELS):
        for name in {op, f"{op}_backward"} & SCHEMAS.keys():
            torch.library.impl(f"{namespace}::{name}", "default", _lazy(op, name))
    return None


def _version() -> tuple[int, ...] | None:
    """(major, minor) of Triton, which is not imported; None where it has another package's name."""
    try:
        version = importlib.metadata.version("triton")
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
