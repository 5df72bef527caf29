"""Speaking to whoever runs a command, and being interrupted by them."""

import signal
import sys

from densesiam._writing import printable


class Interrupted(KeyboardInterrupt):  # Python's own is no error either
    """A signal, such as Ctrl-C, with what to tell about it.

    Attributes:
        code: what the process ends with: 128 and the signal's number, as shells have it.

    Args:
        number: the signal; None for Ctrl-C.
        text: what to tell.
    """

    def __init__(self, number: int | None = None, text: str = "interrupted") -> None:
        super().__init__(text)
        self.code = 128 + (number or signal.SIGINT)


class UsageError(ValueError):
    """A mistake on the command line or in a config file."""


def interactive() -> bool:
    """Whether somebody watches; a log file should not fill with progress bars."""
    return sys.stdout.isatty()


_rank = 0  # among the processes that work together


def set_rank(rank: int) -> None:
    """Say which process this is, for our own messages and files and for Lightning's.

    Lightning itself takes a launcher's variables for it, whether or not processes work together.

    Args:
        rank: its number, among those that work together.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_only  # takes seconds

    global _rank
    _rank = rank
    rank_zero_only.rank = rank  # type: ignore[attr-defined] # where Lightning keeps it


def first_process() -> bool:
    """Whether this process, of those that work together, is the one that writes and speaks."""
    return _rank == 0


def say(text: str) -> None:
    """Print, once for all processes."""
    if first_process():
        print(printable(text), flush=True)
