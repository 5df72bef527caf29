"""Whether the CUDA library runs on a device: asked at first use, device by device.

Nothing here runs when the package is imported. Asking torch for a device starts CUDA, and a process
that has started CUDA cannot be forked and use it in the child.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache

import torch

from densesiam import _libraries

Version = tuple[int, int]

OLDEST = (8, 0)
"""Compute capability that the kernels need: their products are in tf32 (``setup.py``: the same)."""

_TEGRA = ((7, 2), (8, 7))  # Xavier, Orin
_THOR = (10, 1), (11, 0)  # its number in CUDA 12, and from CUDA 13 on


def runs_on(code: str, capability: Version) -> bool:
    """Whether a device executes machine code, or its driver compiles PTX for it.

    The rules are NVIDIA's (CUDA Programming Guide, "Binary Compatibility", "PTX Compatibility",
    "Architecture-Specific Features" and "Family-Specific Features"): machine code runs on its own
    major version from its minor version on, PTX on everything from its version on. The suffix
    ``a`` keeps either to the exact version, ``f`` to its family, which is a major version from that
    minor version on. Machine code of a Tegra runs on no other GPU, and theirs on no Tegra. (From
    CUDA 13.2 on a Tegra takes that of its major version. Not relied on: it is refused too often
    rather than too rarely.) Thor was renumbered, so a library of CUDA 12 names it otherwise than
    a driver of CUDA 13.

    Args:
        code: what nvcc emitted, such as ``"sm_86"``, ``"sm_90a"``, ``"compute_80"``.
        capability: the device's (major, minor).
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", code)
    if parts is None:
        raise ValueError(f"runs_on: {code!r} is no code of nvcc, such as sm_90 or compute_80")
    kind, major, minor, suffix = parts.groups()
    version = _renumbered((int(major), int(minor)))
    capability = _renumbered(capability)
    of_tegra = kind == "sm" and (version in _TEGRA or capability in _TEGRA)
    if suffix == "a" or of_tegra:
        return capability == version
    if kind == "compute" and not suffix:
        return capability >= version
    return capability[0] == version[0] and capability >= version


def _renumbered(capability: Version) -> Version:
    before, now = _THOR
    return now if capability == before else capability


def driver_problem(toolkit: Version, driver: Version | None) -> str | None:
    """Why a driver cannot serve a library at all; None if it can.

    A driver serves every toolkit of its own major version and all older ones (NVIDIA's "CUDA
    Compatibility", "Minor Version Compatibility").

    Args:
        toolkit: CUDA version of the nvcc that built the library.
        driver: the newest CUDA version that the driver knows; None where there is no driver.
    """
    if driver is None or driver[0] >= toolkit[0]:
        return None
    return (
        f"it was built with CUDA {_dotted(toolkit)}, and the NVIDIA driver here knows CUDA up to "
        f"{_dotted(driver)}: update the driver, or build it again with a CUDA {driver[0]} toolkit"
    )


def architecture_problem(
    emitted: str, toolkit: Version, driver: Version | None, capability: Version
) -> str | None:
    """Why a device cannot run what nvcc emitted; None if it can.

    A driver runs the machine code of a newer toolkit of its major version, but does not compile
    that toolkit's PTX.

    Args:
        emitted: codes, such as ``"sm_80 sm_90 compute_80"``.
        toolkit: CUDA version of the nvcc that emitted them.
        driver: the newest CUDA version that the driver knows; None where that is unknown.
        capability: the device's (major, minor).
    """
    here = _dotted(capability)
    if capability < OLDEST:
        return f"it needs a GPU of {_dotted(OLDEST)} or newer, and this one is {here}"
    again = f"build it again on this machine, or with TORCH_CUDA_ARCH_LIST={here}"
    codes = [code for code in emitted.split() if runs_on(code, capability)]
    if not codes:
        return f"it was built for {emitted or 'unknown GPUs'}, and this GPU is {here}: {again}"
    if driver and driver < toolkit and all(code.startswith("compute") for code in codes):
        return (
            f"it was built for {emitted}, of which only PTX serves this GPU ({here}), and the "
            f"driver knows CUDA up to {_dotted(driver)}, too old to compile PTX of CUDA "
            f"{_dotted(toolkit)}: update the driver, or {again}"
        )
    return None


@cache
def driver_version() -> Version | None:
    """The newest CUDA version that the NVIDIA driver knows; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)  # 1000 major + 10 minor; asking does not start CUDA
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def count() -> int:
    """How many CUDA devices torch can use. It starts CUDA."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@cache
def problem(index: int) -> str | None:
    """Why the CUDA library, which was loaded, cannot run on that device; None if it can."""
    return _problem_of_machine() or architecture_problem(
        (_libraries.build_info() or {}).get("architectures", ""),
        _toolkit(),
        driver_version(),
        torch.cuda.get_device_capability(index),
    )


def problem_everywhere() -> str | None:
    """Why the CUDA library, which was loaded, runs on no device here; None if it does on one."""
    if reason := _problem_of_machine():
        return reason
    problems = [problem(index) for index in range(count())]
    return None if None in problems else problems[0]


def _problem_of_machine() -> str | None:
    driver = driver_version()
    # Before torch is asked for devices: of a driver too old it warns at length.
    if reason := driver_problem(_toolkit(), driver):
        return reason
    if count() == 0:
        known = f"its driver knows CUDA up to {_dotted(driver)}" if driver else "it has no driver"
        return f"it was built, but torch finds no CUDA device on this machine ({known})"
    return None


def _toolkit() -> Version:
    """CUDA version of this build; (0, 0), older than any driver, where it left no report."""
    version = (_libraries.build_info() or {}).get("cuda") or "0.0"
    major, minor = version.split(".")
    return int(major), int(minor)


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
