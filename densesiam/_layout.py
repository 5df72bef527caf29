"""The two memory layouts: contiguous, and channels last. csrc/host.h has the same rules."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor) -> bool:
    """True where channels lie side by side, and the tensor is not contiguous as well."""
    return not tensor.is_contiguous() and tensor.movedim(1, -1).is_contiguous()


def empty(like: Tensor, shape: list[int], channels_last: bool, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, C, *spatial) tensor in one of the two layouts."""
    if not channels_last:
        return like.new_empty(shape, dtype=dtype)
    batch, channels, *spatial = shape
    return like.new_empty([batch, *spatial, channels], dtype=dtype).movedim(-1, 1)


def empty_like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor of the same shape and type, in the layout that kernels give it."""
    return empty(tensor, list(tensor.shape), is_channels_last(tensor), tensor.dtype)


def flat(tensor: Tensor) -> Tensor:
    """(B, C, *spatial) as (B, C, P): a view in both layouts."""
    return tensor.unsqueeze(-1) if tensor.dim() == 2 else tensor.flatten(2)


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """The type of sums and losses: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
