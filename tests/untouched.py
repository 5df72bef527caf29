"""Tensors of more than 2^31 elements, in memory that is not there until it is written."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

NO_RESERVE = 0x4000  # Linux' MAP_NORESERVE, which Python 3.11 does not name


def untouched(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are touched, and may exceed what there is.

    Nor do they count as memory that a fork might need: with ordinary zeros of more than the
    machine's memory in its address space, a process can start no other ("Cannot allocate memory").
    """
    count = math.prod(shape)
    if count == 0:
        return torch.zeros(tuple(shape), dtype=dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize, NO_RESERVE | mmap.MAP_PRIVATE | mmap.MAP_ANON)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(tuple(shape))
