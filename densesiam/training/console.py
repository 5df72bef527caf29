"""Speaking to whoever runs a command, and being interrupted by them."""

import sys

from lightning.pytorch.utilities.rank_zero import rank_zero_only


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what to tell about it."""


class UsageError(ValueError):
    """A mistake on the command line or in a config file."""


def interactive() -> bool:
    """Whether somebody watches; a log file should not fill with progress bars."""
    return sys.stdout.isatty()


def first_process() -> bool:
    """Whether this process, of those that work together, is the one that writes and speaks."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(text: str) -> None:
    """Print, once for all processes."""
    if first_process():
        print(text, flush=True)
