"""Dense unsupervised learning: DenseSiam with fused CUDA, Triton and CPU operations."""

import importlib.metadata
import re
import sys

__version__ = "0.1.0"
OLDEST_TORCH = "2.10"
"""The libraries are built against its stable ABI."""


def _numbers(version: str) -> list[int]:
    """Major and minor: nightly builds and vendors' pre-releases of 2.10 are 2.10."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def _torch_version() -> str:
    """Of the torch that is loaded, or installed: loading it takes a second, for nothing yet."""
    if "torch" not in sys.modules:
        try:
            return importlib.metadata.version("torch")
        except importlib.metadata.PackageNotFoundError:
            pass  # it may be on the path all the same
    import torch

    return torch.__version__


if _numbers(_torch_version()) < _numbers(OLDEST_TORCH):
    raise ImportError(
        f"densesiam needs torch {OLDEST_TORCH} or newer, and this is torch {_torch_version()}. "
        f"Install another: pip install 'torch>={OLDEST_TORCH}'"
    )

if __spec__ is not None:  # setup.py runs this file by itself, for the version
    from densesiam import _aliases

    _aliases.install()
