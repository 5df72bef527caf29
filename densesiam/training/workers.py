"""Processes that load data: why one died, and that one hangs."""

import re
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_KILLED = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.]+)\.")
_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) exited unexpectedly(.*)")
_HUNG = re.compile(r"DataLoader timed out after (\S+) seconds")

# Why a signal comes, by its description, and what to do.
_REASONS = {
    signal.strsignal(signal.SIGKILL): "the system, or the queue, kills whatever takes too much "
    "memory: lower data.num_workers or data.batch_size, or ask for more memory",
    signal.strsignal(signal.SIGBUS): "most likely /dev/shm is full, through which batches come: "
    "make it larger (docker run --shm-size), or lower data.num_workers",
    signal.strsignal(signal.SIGSEGV): "a fault in a library that decodes images: --data.num_workers"
    " 0 may show in which",
}


class LoadingError(RuntimeError):
    """A process that loads data died, or hangs."""


@contextmanager
def explained() -> Iterator[None]:
    """Tell what happened to processes that load data, whatever error it became in the block.

    The loader learns of a dead process by a signal, which may meet any line of the program. So its
    error is looked for among all that led to the block's.

    Raises:
        LoadingError: a process died, or hangs.
    """
    try:
        yield
    except Exception as error:
        text = _explain(_chain(error))
        if text is None:
            raise
        raise LoadingError(text) from error


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and all that led to it, the first one first."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is not None and error not in found:
            found.append(error)
            waiting += [error.__context__, error.__cause__]
    return found[::-1]


def _explain(errors: Sequence[BaseException]) -> str | None:
    # Processes that hang are ended, so that comes first.
    for error in errors:
        if hung := _HUNG.search(str(error)):
            return (
                f"the processes that load data have brought no batch for {hung[1]} s: see whether "
                "the folder's file system hangs, or one was stopped; or raise data.worker_timeout"
            )
    for error in errors:
        text = str(error)
        if killed := _KILLED.search(text):
            return _by_signal(killed[1], killed[2])
        if ended := _ENDED.search(text):
            for number, code in _exit_codes(error):
                if code < 0:
                    return _by_signal(str(number), signal.strsignal(-code) or str(-code))
            return (
                f"a process that loads data (pid {ended[1]}) ended by itself"
                f"{ended[2].split('.')[0]}: --data.num_workers 0 may show why"
            )
    return None


def _by_signal(number: str, description: str) -> str:
    reason = f": {_REASONS[description]}" if description in _REASONS else ""
    return (
        f"a process that loads data (pid {number}) was ended by a signal, {description!r}{reason}"
    )


def _exit_codes(error: BaseException) -> Iterator[tuple[int, int]]:
    """Of the processes that a loader found dead without a signal that said why: pid and code."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for process in frame.f_locals.get("failed_workers", ()):  # a local variable of the loader's
            yield process.pid, process.exitcode
