"""What takes the place of a file that cannot be read."""

import warnings
from collections.abc import Callable
from typing import Generic, Literal, NamedTuple, TypeVar

from densesiam.data.image.files import ImageReadError
from densesiam.data.order.draws import Draw

Errors = Literal["skip", "raise"]
_Content = TypeVar("_Content")
_Made = TypeVar("_Made")


class Found(NamedTuple, Generic[_Made]):
    """What was read."""

    content: _Made
    """Of the file."""
    position: int
    """Which file it is."""
    skipped: int
    """How many files before it, the one that was asked for among them, cannot be read."""


class Substitutes(Generic[_Content]):
    """Reads the file that is asked for, or else the next one that can be read.

    Which one that is follows from the files alone, so it is the same in every process and every
    run. A file that failed is not tried again in the same epoch, but in the next: a folder that was
    away comes back. A warning names each, once in a process.

    Args:
        count: of the files.
        read: reads the file of a number, or raises ImageReadError.
        errors: "skip" takes another file, "raise" does not.

    Raises:
        ValueError: neither "skip" nor "raise".
    """

    def __init__(self, count: int, read: Callable[[int], _Content], errors: Errors) -> None:
        if errors not in ("skip", "raise"):
            raise ValueError(f'errors must be "skip" or "raise", got {errors!r}')
        self._count = count
        self._read = read
        self._errors = errors
        self._failed_in: dict[int, int] = {}  # the epoch, by the file

    def find(self, draw: Draw, use: Callable[[_Content], _Made]) -> Found[_Made]:
        """Read the file of a draw, or another.

        Args:
            draw: names the file.
            use: makes of what was read what is wanted; where it raises ImageReadError, as a file
                does whose pixels are decoded late, another file is read.

        Raises:
            ImageReadError: it cannot be read, and no other is to be taken, or none can be.
        """
        for skipped in range(self._count):
            index = (draw.index + skipped) % self._count
            if self._failed_in.get(index) == draw.epoch:
                continue
            try:
                return Found(use(self._read(index)), index, skipped)
            except ImageReadError as error:
                if self._errors == "raise":
                    raise
                if index not in self._failed_in:
                    warnings.warn(f"{error}; the next image takes its place", stacklevel=3)
                self._failed_in[index] = draw.epoch
        # Nobody should wait for the next epoch: the files may come back.
        self._failed_in = dict.fromkeys(self._failed_in, -1)
        raise ImageReadError(f"none of the {self._count} images can be read: see the warnings")
