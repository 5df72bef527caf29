"""What is measured: one operation at one shape, its peers, and the bytes it cannot avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """One operation at one shape.

    Attributes:
        op: the operation's name.
        shape: the shape in words, for the table.
        make: new inputs; called several times, so that caches are cold.
        ours: the operation on those inputs, on whichever backend is active.
        eager: the best library composition of the same result, run eagerly and compiled.
        differentiable: which inputs receive gradients; none means forward only.
        read: elements that forward must read.
        written: elements that forward must write.
        read_backward: elements that backward must read.
        written_backward: elements that backward must write.
        itemsize: bytes of an element.
        exact: integer results must agree but for this share of ties.
    """

    op: str
    shape: str
    make: Callable[[], list[Tensor]]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    read: int
    written: int
    differentiable: tuple[int, ...] = (0,)
    read_backward: int = 0
    written_backward: int = 0
    itemsize: int = 4
    ties: float = 0.0

    @property
    def mandatory_bytes(self) -> int:
        """Forward and backward, inputs read once and outputs written once."""
        elements = self.read + self.written + self.read_backward + self.written_backward
        return elements * self.itemsize
