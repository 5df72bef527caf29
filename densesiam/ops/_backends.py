"""Which backend runs a call: the user's choice if there is one, else the fastest that can."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from densesiam import _libraries
from densesiam.ops._registry import NAMESPACE, OPERATIONS

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""Every backend, in the order in which ``auto`` prefers them."""

NAMESPACES = {"cuda": NAMESPACE, "cpu": NAMESPACE, "triton": f"{NAMESPACE}_triton"}
"""Where each backend's operators live in the dispatcher; ``reference`` is plain PyTorch."""

_MISSING: dict[str, str | None] = {}  # backend -> why this process cannot use it
_KERNELS: dict[str, frozenset[str]] = {}  # backend -> operations it has
_NO_FLOAT64: dict[str, frozenset[str]] = {}  # backend -> operations that cannot take float64
_forced: ContextVar[str | None] = ContextVar("densesiam_backend", default=None)
_ENVIRONMENT = os.environ.get("DENSESIAM_BACKEND") or "auto"
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
_SERVES = {"cuda": "cuda", "triton": "cpu" if _INTERPRET else "cuda", "cpu": "cpu"}  # devices


@dataclass(frozen=True)
class Explanation:
    """Which backend would run a call, and why each of the others would not."""

    op: str
    backend: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.op} runs on {self.backend}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.others.items()]
        return "\n".join(lines)


def load_backends() -> None:
    """Load what was built. Called once, after every operation is registered."""
    _MISSING["reference"] = None
    _MISSING["cpu"] = _libraries.load("_cpu")
    _MISSING["cuda"] = _libraries.load("_cuda")
    if _MISSING["cuda"] is None:
        _MISSING["cuda"] = _device_problem()
    _KERNELS["reference"] = frozenset(OPERATIONS)
    _KERNELS["cpu"] = _registered("CPU")
    _KERNELS["cuda"] = _registered("CUDA")
    _load_triton()
    if not _KERNELS["cpu"] and not _KERNELS["cuda"]:
        warnings.warn(
            "densesiam has no compiled kernels here and runs on its PyTorch references: the same "
            f"results, slower. The CPU kernels: {_MISSING['cpu']}",
            RuntimeWarning,
            stacklevel=2,
        )


def _registered(key: str) -> frozenset[str]:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(op for op in OPERATIONS if has_kernel(f"{NAMESPACE}::{op}", key))


def _device_problem() -> str | None:
    """Why kernels that were built and loaded cannot run on this machine's device."""
    if not torch.cuda.is_available():
        return "it was built, but torch finds no CUDA device on this machine"
    built = (_libraries.build_info() or {}).get("architectures", "")
    return architecture_problem(built, torch.cuda.get_device_capability())


def architecture_problem(built: str, device: tuple[int, int]) -> str | None:
    """Why a device of that compute capability cannot run a build; None if it can.

    Machine code runs on its own major version from its minor version on; PTX on everything newer.

    Args:
        built: a TORCH_CUDA_ARCH_LIST, such as ``"8.0;9.0+PTX"``.
        device: (major, minor).
    """
    for name in built.replace(" ", ";").split(";"):
        number = name.removesuffix("+PTX").rstrip("af")
        if "." not in number:
            continue
        major, minor = (int(part) for part in number.split("."))
        same_family = device[0] == major and device[1] >= minor
        if same_family or (name.endswith("+PTX") and device >= (major, minor)):
            return None
    wanted = f"{device[0]}.{device[1]}"
    return (
        f"it was built for architectures {built or 'unknown'}, and this GPU is {wanted}. Build it "
        f"again on this machine, or with TORCH_CUDA_ARCH_LIST={wanted}"
    )


def _load_triton() -> None:
    from densesiam.ops import _triton

    _MISSING["triton"] = _triton.missing()
    _KERNELS["triton"] = _triton.KERNELS
    _NO_FLOAT64["triton"] = _triton.NO_FLOAT64


def check_backend(name: str) -> None:
    """Raise if this process cannot run that backend at all."""
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or auto, got {name!r}")
    if name != "auto" and (reason := _MISSING[name]) is not None:
        raise RuntimeError(f"backend {name!r} cannot be used: {reason}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operation inside the block on one backend.

    Args:
        name: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``, or ``"auto"`` (the default
            everywhere: the first of them that can serve the call). It takes precedence over the
            environment variable ``DENSESIAM_BACKEND``. Backward runs where forward ran.

    Raises:
        ValueError: an unknown name.
        RuntimeError: on entry, where that backend was not built or has no device; at a call that
            it cannot serve. It never falls back to another.
    """
    check_backend(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def kernels(name: str) -> list[str]:
    """The operations that a backend has kernels for."""
    return sorted(_KERNELS[name])


def missing(name: str) -> str | None:
    """Why this process cannot use a backend at all; None if it can."""
    return _MISSING[name]


def select(op: str, *tensors: Tensor) -> str:
    """Name of the backend that serves this call.

    Raises:
        RuntimeError: a backend was asked for that cannot.
    """
    wanted = _forced.get() or _ENVIRONMENT
    if wanted == "auto":
        for name in BACKENDS:
            if _why_not(name, op, tensors) is None and not _interpreted(name, tensors):
                return name
    reason = f"there is no such backend; it must be one of {', '.join(BACKENDS)} or auto"
    if wanted in BACKENDS:
        problem = _why_not(wanted, op, tensors)
        if problem is None:
            return wanted
        reason = problem
    raise RuntimeError(f"{op}: backend {wanted!r} was asked for, but {reason}")


def explain(op: str | Callable[..., Tensor], *tensors: Tensor) -> Explanation:
    """Tell which backend would run a call now, and why each of the others would not.

    Args:
        op: an operation or its name.
        *tensors: the call's tensors (other arguments do not matter and may be left out).

    Example:
        >>> print(ops.explain(ops.overlap_sample, features, boxes))  # doctest: +SKIP
        overlap_sample runs on cpu
          not cuda: it serves tensors on cuda, and these are on cpu
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in OPERATIONS:
        raise ValueError(f"explain: {name!r} is no operation; these are: {', '.join(OPERATIONS)}")
    given = tuple(t for t in tensors if isinstance(t, Tensor))
    chosen = select(name, *given)
    others = {}
    for other in BACKENDS:
        if other == chosen:
            continue
        reason = _why_not(other, name, given)
        if reason is None and _interpreted(other, given):
            reason = "the interpreter is for tests; ask for it with use_backend"
        others[other] = reason or f"{chosen} was asked for or is preferred"
    return Explanation(name, chosen, others)


def _why_not(name: str, op: str, tensors: tuple[Tensor, ...]) -> str | None:
    if (reason := _MISSING[name]) is not None:
        return reason
    if name == "reference":
        return None
    if op not in _KERNELS[name]:
        return f"it has no kernel for {op} yet"
    device = tensors[0].device.type
    if device != _SERVES[name]:
        return f"it serves tensors on {_SERVES[name]}, and these are on {device}"
    if op in _NO_FLOAT64.get(name, ()) and tensors[0].dtype == torch.float64:
        return f"its {op} does not take float64"
    return None


def _interpreted(name: str, tensors: tuple[Tensor, ...]) -> bool:
    return name == "triton" and tensors[0].device.type == "cpu"
