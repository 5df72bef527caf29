"""The command in a process of its own, which is told its steps and sent signals."""

import os
import signal
import sys
import time
import traceback

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
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            # What a shell starts in the background ignores it, and so do its children.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            begin = Finite.on_train_batch_start

            def started(self, *args):
                os.write(write, b".")
                begin(self, *args)

            Finite.on_train_batch_start = started
            if before is not None:
                before()
            code = cli.main(args)
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    os.close(write)
    if step is not None and all(os.read(read, 1) for _ in range(step)):
        time.sleep(seconds)  # at any moment, not at a chosen step
        os.kill(child, number)
    # Nothing waits for a reader: a pipe holds 65536 steps.
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(read)
    return code
