"""The command in processes of its own: one that is sent signals, or several that work together."""

import os
import signal
import socket
import sys
import time
import traceback
from functools import partial

from densesiam import cli
from densesiam.training.divergence import Finite


def run(args, step=None, seconds=0.0, number=signal.SIGKILL, before=None):
    """Run the command in a process of its own, and send it a signal.

    Args:
        args: the command line.
        step: in which step, counted from 1; None never.
        seconds: after how long in that step.
        number: of the signal.
        before: called in that process first.

    Returns:
        The exit code; negative where a signal ended it.
    """
    read, write = os.pipe()

    def begin():
        os.close(read)
        batch = Finite.on_train_batch_start

        def started(self, *args):
            os.write(write, b".")
            batch(self, *args)

        Finite.on_train_batch_start = started
        if before is not None:
            before()

    child = _fork(args, begin)
    os.close(write)
    if step is not None and all(os.read(read, 1) for _ in range(step)):
        time.sleep(seconds)  # at any moment, not at a chosen step
        os.kill(child, number)
    # Nothing waits for a reader: a pipe holds 65536 steps.
    code = _wait(child)
    os.close(read)
    return code


def run_together(args, processes, before=None):
    """Run the command in several processes that work together, as torchrun does.

    Args:
        args: the command line.
        processes: how many.
        before: called in each of them first.

    Returns:
        The exit codes, of the first process first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": 1,
    }

    def begin(rank):
        for name, value in {**variables, "RANK": rank, "LOCAL_RANK": rank}.items():
            os.environ[name] = str(value)
        if before is not None:
            before()

    children = [_fork(args, partial(begin, rank)) for rank in range(processes)]
    return [_wait(child) for child in children]


def _fork(args, begin):
    child = os.fork()
    if child == 0:
        try:
            # What a shell starts in the background ignores it, and so do its children.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            begin()
            code = cli.main(args)
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    return child


def _wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
