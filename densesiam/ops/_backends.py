"""Which backend runs a call: the user's choice if there is one, else the fastest that can."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from densesiam import _devices, _libraries
from densesiam.ops._operations import NAMESPACE, OPERATIONS, interface

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""Every backend, in the order in which ``auto`` prefers them."""

NAMESPACES = {"cuda": NAMESPACE, "cpu": NAMESPACE, "triton": f"{NAMESPACE}_triton"}
"""Where each backend's operators live in the dispatcher; ``reference`` is plain PyTorch."""

_MISSING: dict[str, str | None] = {}  # backend -> why no process can use what is installed
_KERNELS: dict[str, frozenset[str]] = {}  # backend -> operations it has
_MOST_ELEMENTS: dict[str, int | None] = {  # backend -> of one image: the width of its offsets
    "cuda": 2**31 - 1,
    "cpu": None,
}
_ENVIRONMENT = os.environ.get("DENSESIAM_BACKEND") or "auto"
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
_SERVES = {"cuda": "cuda", "triton": "cpu" if _INTERPRET else "cuda", "cpu": "cpu"}  # devices


class _Forced(threading.local):
    """What `use_backend` asked for in this thread. torch.compile guards on it, in every torch.

    It would not on an attribute of the class, nor can it trace a ContextVar before torch 2.14.
    """

    def __init__(self) -> None:
        self.name: str | None = None


_forced = _Forced()


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
    """Load what was built. Called once, after every operation is registered.

    No device is looked for here, which would start CUDA: each is judged at its first call.
    """
    _MISSING["reference"] = None
    _MISSING["cpu"] = _libraries.load("_cpu", interface())
    _MISSING["cuda"] = _libraries.load("_cuda", interface())
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


def _load_triton() -> None:
    from densesiam.ops import _triton

    _MISSING["triton"] = _triton.missing()
    _KERNELS["triton"] = _triton.kernels()


def check_backend(name: str) -> None:
    """Raise if this process cannot run that backend at all."""
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or auto, got {name!r}")
    if name != "auto" and (reason := missing(name)) is not None:
        raise RuntimeError(f"backend {name!r} cannot be used: {reason}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operation inside the block on one backend, in this thread.

    It is this thread's choice while the block runs: other threads keep theirs, and backward runs
    where forward ran. What `torch.utils.checkpoint` computes anew runs during backward, after the
    block; so enter the block inside the function that is checkpointed. A compiled function keeps
    the backend it was compiled for, and is compiled anew under another.

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
    before = _forced.name
    _forced.name = name
    try:
        yield
    finally:
        _forced.name = before


def kernels(name: str) -> list[str]:
    """The operations that a backend has kernels for."""
    return sorted(_KERNELS[name])


def missing(name: str) -> str | None:
    """Why this process cannot use a backend at all; None if it can. It may start CUDA."""
    if (reason := _MISSING[name]) is not None:
        return reason
    if name == "cuda":
        return _devices.problem_everywhere()
    if name == "triton" and not _INTERPRET and _devices.count() == 0:
        return "torch finds no GPU; on the CPU its kernels run under TRITON_INTERPRET=1 only"
    return None


def select(op: str, *tensors: Tensor, elements: int = 0) -> str:
    """Name of the backend that serves this call.

    Args:
        op: the operation.
        *tensors: its arguments, images first of all axes.
        elements: of one image of what the call makes, where an argument may have fewer.

    Raises:
        RuntimeError: a backend was asked for that cannot.
    """
    wanted = _forced.name or _ENVIRONMENT
    if wanted == "auto":
        device = tensors[0].device.type
        for name in BACKENDS:
            if _SERVES.get(name, device) != device:
                continue  # without making the reason
            if _why_not(name, op, tensors, elements) is None and not _interpreted(name, tensors):
                return name
    reason = f"there is no such backend; it must be one of {', '.join(BACKENDS)} or auto"
    if wanted in BACKENDS:
        problem = _why_not(wanted, op, tensors, elements)
        if problem is None:
            return wanted
        reason = problem
    raise RuntimeError(f"{op}: backend '{wanted}' was asked for, but {reason}")


def runs_cpu_kernels(backend: str) -> bool:
    """Whether the kernels are the CPU's, which look at values themselves and refuse wrong ones.

    In tests the CUDA kernels, which cannot, may stand in their place.
    """
    return backend == "cpu" and NAMESPACES["cpu"] == NAMESPACE


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
    if not given:
        raise ValueError(f"explain: give {name}'s tensors too; which backend runs depends on them")
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


def _why_not(name: str, op: str, tensors: tuple[Tensor, ...], elements: int = 0) -> str | None:
    if (reason := _MISSING[name]) is not None:
        return reason
    if name == "reference":
        return None
    if op not in _KERNELS[name]:
        return f"it has no kernel for {op} yet"
    device = tensors[0].device.type
    if device != _SERVES[name]:
        return f"it serves tensors on {_SERVES[name]}, and these are on {device}"
    if name == "cuda" and (problem := _device_problem(tensors[0].device.index)) is not None:
        return problem
    if (most := _MOST_ELEMENTS.get(name)) is not None:
        for tensor in tensors:
            if tensor.numel() > most:
                elements = max(elements, tensor.shape[0], tensor.numel() // tensor.shape[0])
        if elements > most:
            return (
                f"it takes at most {most} images, of at most {most} elements each, and this call "
                f"has {elements}"
            )
    return None


def _device_problem(index: int) -> str | None:
    return _first_use(index)


# Asked while tracing, not traced: what torch.compiler.assume_constant_result does, which would
# import the compiler, and Triton with it, along with this module.
_device_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a function has none


@cache
def _first_use(index: int) -> str | None:
    """Judge a device once, and say what keeps kernels that were built from running on it."""
    problem = _devices.problem(index)
    if problem is not None:
        warnings.warn(
            f"densesiam's CUDA kernels do not run on cuda:{index}: {problem}",
            RuntimeWarning,
            stacklevel=2,
        )
    return problem


def _interpreted(name: str, tensors: tuple[Tensor, ...]) -> bool:
    return name == "triton" and tensors[0].device.type == "cpu"
