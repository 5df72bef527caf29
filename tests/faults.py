"""A disk that fails, and a process that is killed, on command while a file is written."""

import errno
import os
from contextlib import contextmanager
from unittest import mock

# The calls into the system on the way of a file to its place, in `densesiam._writing`.
STEPS = ["fsync", "link", "replace previous", "replace"]


@contextmanager
def at(step, act):
    """Let something happen in place of a step."""
    name, _, last = step.partition(" ")
    real = getattr(os, name)
    done = []

    def call(*args):
        wanted = not last or last in os.fspath(args[1])
        if name == "replace" and not last:
            wanted = "previous" not in os.fspath(args[1])
        if wanted and not done:
            done.append(step)
            act()
        return real(*args)

    with mock.patch.object(os, name, call):
        yield done


@contextmanager
def fail_at(step):
    """The disk is full at a step."""

    def full():
        raise OSError(errno.ENOSPC, "the disk is full")

    with at(step, full) as done:
        yield done


def killed_at(step, work):
    """Do some work in a process that dies at a step, with nothing closed or cleaned up.

    Returns:
        Whether it came so far.
    """
    child = os.fork()
    if child == 0:
        try:
            with at(step, lambda: os._exit(9)):
                work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
