"""Argument checks of the public functions: one clear message, in eager and compiled code alike."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from densesiam.ops._backends import runs_cpu_kernels
from densesiam.reference._numerics import values_are_known

FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (int, torch.SymInt)
MOST = 2**31 - 1
"""The longest side of a tensor, and of a result."""
_CHECKED = {"cpu", "cuda"} if os.environ.get("DENSESIAM_CHECK") == "1" else {"cpu"}
"""Devices whose values are looked at."""

# A `raise` cannot be traced. Where a traced call is found to be wrong, this operator takes its
# place in the graph and raises the same error when the graph runs.
torch.library.define("densesiam::reject", "(Tensor like, str error, str message) -> Tensor")
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (ValueError, TypeError, RuntimeError)
}


@torch.library.impl("densesiam::reject", "CompositeExplicitAutograd")
def _reject(like: Tensor, error: str, message: str) -> Tensor:
    raise _ERRORS[error](message)


@torch.library.register_fake("densesiam::reject")
def _reject_fake(like: Tensor, error: str, message: str) -> Tensor:
    return torch.empty_like(like)


def checked(check: Callable[..., None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run ``check`` on a public function's arguments first; it raises ValueError or TypeError.

    In a compiled call an operator takes the place of the error, and that needs a tensor: the first
    one among the arguments.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        check.__qualname__ = function.__name__  # Python names it where an argument has no place

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                check(*args, **kwargs)
                return function(*args, **kwargs)
            try:
                check(*args, **kwargs)
                return function(*args, **kwargs)
            except ValueError as error:
                return _reject_call("ValueError", error, args, kwargs)
            except TypeError as error:
                return _reject_call("TypeError", error, args, kwargs)
            except RuntimeError as error:  # no backend can serve the call
                return _reject_call("RuntimeError", error, args, kwargs)

        # The compiler counts the graphs of each code, and all operations would share one.
        code: Any = call
        code.__code__ = code.__code__.replace(co_name=function.__name__)
        return call

    return decorate


def _reject_call(
    kind: str, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return torch.ops.densesiam.reject(value.detach(), kind, error.args[0])
    raise error


def check_float(op: str, name: str, tensor: Tensor) -> None:
    """Require a floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOAT_TYPES:
        raise TypeError(
            f"{op}: {name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}"
        )
    check_strided(op, name, tensor)


def check_strided(op: str, name: str, tensor: Tensor) -> None:
    """Require an ordinary tensor, whose sides fit the 32 bits that kernels count them in."""
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        raise TypeError(f"{op}: {name} must be a dense tensor, got a {kind} one")
    if torch.compiler.is_compiling() or 0 < tensor.numel() <= MOST:
        return
    for side in tensor.shape:
        if side > MOST:
            raise ValueError(
                f"{op}: {name} must have sides of at most {MOST}, got shape {tuple(tensor.shape)}"
            )


def check_dims(op: str, name: str, tensor: Tensor, dims: int, shape: str) -> None:
    """Require exactly that many dimensions."""
    if tensor.dim() != dims:
        raise ValueError(f"{op}: {name} must be {shape}, got shape {tuple(tensor.shape)}")


def check_same(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Require one device, and one number type unless autocast promotes."""
    check_device(op, name, tensor, other_name, other)
    if tensor.dtype != other.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise TypeError(
            f"{op}: {name} and {other_name} must have one type outside autocast, got "
            f"{tensor.dtype} and {other.dtype}"
        )


def check_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Require both tensors on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on {other_name}'s device {other.device}, got {tensor.device}"
        )


def check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Require one of a few words."""
    # Quoted by hand: of a compiled call torch 2.10 drops the !r on Python 3.13.
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got '{value}'")


def check_boxes(op: str, name: str, boxes: Tensor, features_name: str, features: Tensor) -> None:
    """Require (B, 4) float32 or float64 boxes."""
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(boxes).__name__}")
    if boxes.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: {name} must be float32 or float64, got {boxes.dtype}")
    check_strided(op, name, boxes)
    expected = (features.shape[0], 4)
    if boxes.shape != expected:
        raise ValueError(
            f"{op}: {name} must have shape (B, 4) = {expected} for {features_name} of shape "
            f"{tuple(features.shape)}, got {tuple(boxes.shape)}"
        )
    check_device(op, name, boxes, features_name, features)
    check_constant(op, name, boxes)


def check_constant(op: str, name: str, tensor: Tensor) -> None:
    """Require a tensor that asks for no gradient: it would wait for one in vain."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: there is no gradient to {name}, and this one requires it; give {name}.detach()"
        )


def finite_boxes(op: str, name: str, boxes: Tensor, backend: str) -> Tensor:
    """The boxes, their values checked where that costs no synchronisation with a device.

    That is on the CPU, and on a GPU under ``DENSESIAM_CHECK=1``. Kernels that look themselves do it
    in no time.
    """
    known = values_are_known(boxes)
    if (known and runs_cpu_kernels(backend)) or boxes.device.type not in _CHECKED:
        return boxes
    if not known:
        return torch.ops.densesiam.finite_boxes(boxes.detach(), op, name)
    require_finite(op, name, boxes)
    return boxes


def require_finite(op: str, name: str, boxes: Tensor) -> None:
    """Require finite values."""
    # A sum is one call, and finite of nothing else; of finite boxes it may overflow.
    if math.isfinite(boxes.sum()):
        return
    finite = torch.isfinite(boxes).all(dim=1)
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        raise ValueError(f"{op}: {name} must be finite, got {boxes[bad].tolist()} for sample {bad}")


torch.library.define("densesiam::finite_boxes", "(Tensor boxes, str op, str name) -> Tensor")


@torch.library.impl("densesiam::finite_boxes", "CompositeExplicitAutograd")
def _finite_boxes(boxes: Tensor, op: str, name: str) -> Tensor:
    require_finite(op, name, boxes)
    return boxes.clone()


@torch.library.register_fake("densesiam::finite_boxes")
def _finite_boxes_fake(boxes: Tensor, op: str, name: str) -> Tensor:
    return torch.empty_like(boxes)


def check_size(op: str, size: int | tuple[int, int]) -> None:
    """Require one positive integer, or two."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    for length in pair:
        if isinstance(length, bool) or not isinstance(length, INTEGERS):
            raise TypeError(f"{op}: size must be an int or (height, width), got {size!r}")
    if len(pair) != 2 or pair[0] < 1 or pair[1] < 1:
        raise ValueError(f"{op}: size must be positive, an int or (height, width), got {size!r}")
    if not torch.compiler.is_compiling() and max(pair) > MOST:
        raise ValueError(f"{op}: size must be at most {MOST}, got {size!r}")


def check_weight(op: str, weight: Tensor | None, name: str, tensor: Tensor) -> None:
    """Require (B,) float or bool weights."""
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"{op}: weight must be a tensor, got {type(weight).__name__}")
    if weight.dtype != torch.bool and weight.dtype not in FLOAT_TYPES:
        raise TypeError(f"{op}: weight must be float or bool, got {weight.dtype}")
    check_strided(op, "weight", weight)
    if weight.dim() != 1 or weight.shape[0] != tensor.shape[0]:
        raise ValueError(
            f"{op}: weight must have shape (B,) = ({tensor.shape[0]},), got {tuple(weight.shape)}"
        )
    check_device(op, "weight", weight, name, tensor)
    check_constant(op, "weight", weight)


def size_pair(size: int | tuple[int, int]) -> list[int]:
    """(height, width) of a size."""
    return list(size) if isinstance(size, tuple | list) else [size, size]


def promoted(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in the wider type: the autocast rule for mixed features (boxes stay away).

    No precision is lost, and nothing is converted where the types agree already.
    """
    if a.dtype == b.dtype:
        return a, b
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)
