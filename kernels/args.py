"""What every operator checks of its arguments before memory is touched, as csrc/args.h does it.

Number of dimensions, shape, type and device of each, forward and backward. An exported program or a
caller of ``torch.ops.densesiam_triton`` comes here without the public functions' checks. What is
wrong raises ValueError, or TypeError where it is a type.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densesiam import _layout

FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BOX_TYPES = (torch.float64, torch.float32)
MOST = 2**31 - 1
"""The longest side of a map, and of a grid of cells: kernels count them in 32 bits."""


def check_type(op: str, name: str, tensor: Tensor, *types: torch.dtype) -> None:
    """Require one of these number types."""
    if tensor.dtype not in types:
        expected = " or ".join(str(each) for each in types)
        raise TypeError(f"{op}: {name} must be {expected}, got {tensor.dtype}")


def check_tensor(
    op: str,
    name: str,
    tensor: Tensor | None,
    dtype: torch.dtype,
    shape: Sequence[int],
    like: Tensor,
) -> None:
    """Require that type and shape, and ``like``'s device, of a tensor if there is one."""
    if tensor is None:
        return
    check_type(op, name, tensor, dtype)
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{op}: {name} must have shape {tuple(shape)}, got shape {tuple(tensor.shape)}"
        )
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {tensor.device}")


def check_pixels(op: str, name: str, tensor: Tensor, channels: int = 1) -> None:
    """Require (B, C, P) of a floating-point type, with at least that many channels."""
    check_type(op, name, tensor, *FLOAT_TYPES)
    if tensor.dim() != 3 or tensor.shape[1] < channels:
        raise ValueError(
            f"{op}: {name} must be (B, C, P) with C >= {channels}, got shape {tuple(tensor.shape)}"
        )


def check_map(op: str, name: str, tensor: Tensor) -> None:
    """Require (B, C, H, W) of a floating-point type, with pixels."""
    check_type(op, name, tensor, *FLOAT_TYPES)
    if tensor.dim() != 4:
        raise ValueError(f"{op}: {name} must be (B, C, H, W), got shape {tuple(tensor.shape)}")
    if not all(1 <= side <= MOST for side in tensor.shape[2:]):
        raise ValueError(
            f"{op}: {name} must have 1 to 2^31 - 1 rows and columns, got shape "
            f"{tuple(tensor.shape)}"
        )


def check_size(op: str, size: Sequence[int]) -> None:
    """Require rows and columns of cells."""
    if len(size) != 2 or not all(1 <= side <= MOST for side in size):
        raise ValueError(f"{op}: size must be two integers from 1 to 2^31 - 1, got {tuple(size)}")


def check_boxes(op: str, name: str, boxes: Tensor | None, features: Tensor) -> None:
    """Require (B, 4) boxes for a map of B images, if there are any."""
    if boxes is None:
        return
    check_type(op, name, boxes, *BOX_TYPES)
    check_tensor(op, name, boxes, boxes.dtype, (features.shape[0], 4), features)


def check_pair(op: str, p: Tensor, z: Tensor) -> None:
    """Require two (B, C, P) of one shape, type and device."""
    check_pixels(op, "p", p)
    check_tensor(op, "z", z, p.dtype, p.shape, p)


def check_word(op: str, name: str, word: str, words: Sequence[str]) -> None:
    """Require one of a few words."""
    if word not in words:
        raise ValueError(f"{op}: {name} must be one of {', '.join(words)}, got {word!r}")


def check_weighted(op: str, weight: Tensor | None, reduction: str, features: Tensor) -> None:
    """Require (B,) weights, float or bool, if there are any, and a reduction."""
    if weight is not None:
        if weight.dtype not in (torch.bool, *FLOAT_TYPES):
            raise TypeError(f"{op}: weight must be float or bool, got {weight.dtype}")
        check_tensor(op, "weight", weight, weight.dtype, features.shape[:1], features)
    check_word(op, "reduction", reduction, ("mean", "none"))


def check_grad(
    op: str, grad: Tensor, reduction: str, losses: Sequence[int], features: Tensor
) -> None:
    """Require the gradient of a loss: () of a mean, else as the losses."""
    shape = () if reduction == "mean" else losses
    check_tensor(op, "grad", grad, _layout.accumulate_dtype(features), shape, features)
