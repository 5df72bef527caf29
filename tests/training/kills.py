"""Real kills of real runs: ``python -m tests.training.kills 100`` tries as many, at random.

A run is killed again and again and gone on with by the same command, until it is complete; then
another is begun. Lost means: a checkpoint that was written does not load, the newest is older than
one that was there before, or the run ends with other bits than one that was left alone.
"""

import argparse
import random
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from densesiam.training.checkpoints import open_checkpoint, read_file
from tests.training import children
from tests.training.earlier.commands import prepare
from tests.transfer.support import same, tensors


@dataclass
class Result:
    """What came of the kills.

    Attributes:
        tried: kills.
        within: those that met a run with a checkpoint.
        lost: losses, see the head of this module.
    """

    tried: int = 0
    within: int = 0
    lost: int = 0

    def __str__(self):
        return (
            f"tried {self.tried} ({self.within} with a checkpoint), "
            f"survived {self.tried - self.lost}, lost {self.lost}"
        )


class Kills:
    """Kill runs in a folder, at times drawn from a seed."""

    def __init__(self, folder, seed):
        self.folder = folder
        self.random = random.Random(seed)
        # A checkpoint after every step: most of the time is spent writing them.
        self.args = [
            *prepare("fit", folder),
            *("--data.batch_size", "2", "--trainer.max_epochs", "4"),
            *("--trainer.checkpoint_every_n_minutes", "1e-9", "--ckpt_path", "auto"),
        ]

    def run(self, kills):
        """Kill so often."""
        whole = self.folder / "whole"
        assert run_killed([*self.args, "--output", str(whole)])
        result, number = Result(), 0
        while result.tried < kills:
            number += 1
            self._one_run(self.folder / str(number), kills, result, tensors(whole))
        return result

    def _one_run(self, run, kills, result, whole):
        args, reached = [*self.args, "--output", str(run)], 0
        while result.tried < kills:
            # So many steps on, whatever a step takes here, and at some point within the next.
            if run_killed(args, self.random.randint(1, 4), self.random.uniform(0, 0.1)):
                break
            result.tried += 1
            if not any(run.glob("checkpoints/[!.]*.ckpt")):
                continue
            result.within += 1
            try:
                step = open_checkpoint("last", str(run), _read)[1]["global_step"]
            except (OSError, ValueError) as error:
                print(error)
                step = -1
            result.lost += step < reached
            reached = step
        if not run_killed(args) or not same(tensors(run), whole):
            result.lost += 1


def _read(path):
    return read_file(path, "expected a checkpoint")


def run_killed(args, *when):
    """Run the command and kill it, see `children.run`.

    Returns:
        Whether it ended by itself, with 0.
    """
    code = children.run(args, *when)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the command ended with {code}")
    return code == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = Kills(Path(folder), options.seed).run(options.kills)
    print(found)
    raise SystemExit(bool(found.lost))
