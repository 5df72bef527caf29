"""A stand-in for SLURM: it sets a job's variables, warns it, ends it, and takes it up again."""

import os
import signal
from pathlib import Path

import torch

from tests.training import children

# Of a job of one process.
VARIABLES = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "localhost",
}
# What ``--signal=USR1@120`` sends, what preemption does, and what follows where it does not help.
ENDS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL)


def leave_requeue_file(command_checkpoint, folder):
    """Leave what Lightning's own requeueing would take for this job's: another run's weights."""
    content = torch.load(command_checkpoint, weights_only=True)
    for tensor in content["state_dict"].values():
        if tensor.is_floating_point():
            tensor.add_(1.0)
    torch.save(content, Path(folder) / "hpc_ckpt_3.ckpt")


def requeued(args, folder, steps, ends=ENDS):
    """Run a job in a queue until it is finished.

    Args:
        args: of the command; the same each time.
        folder: the job's working directory.
        steps: of each start, the step in which it is ended.
        ends: by which signals.

    Returns:
        The exit code of each start.
    """
    codes = []

    def begin():
        os.chdir(folder)
        os.environ.update(VARIABLES, SLURM_RESTART_COUNT=str(len(codes)))

    for step, number in zip(steps, ends, strict=True):
        codes.append(children.run(args, step, number=number, before=begin))
    codes.append(children.run(args, before=begin))
    return codes
