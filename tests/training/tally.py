"""What faults cost: ``python -m tests.training.tally`` tries each kind and counts what was lost.

Lost means: the last checkpoint that was written does not load, or the run that is gone on with does
not end with the bits of one that was left alone. A process that should have refused, or ended
otherwise than documented, is lost too.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch

from densesiam.training.checkpoints import (
    WholeCheckpoints,
    open_checkpoint,
    read_file,
)
from densesiam.training.interrupts import SIGNALS, StopAndSave
from tests.faults import STEPS, fail_at, killed_at
from tests.training import children
from tests.training.earlier.commands import checkpoint
from tests.training.kills import Kills
from tests.training.slurm import leave_requeue_file, requeued
from tests.training.support import command
from tests.transfer.support import same, tensors

_STEPS = 8  # of a whole run


def read(path):
    return read_file(path, "expected a checkpoint")


def save(path, step):
    WholeCheckpoints().save_checkpoint({"step": step, "weights": torch.full((999,), step)}, path)


class Trials:
    """Try faults, each in a folder of its own.

    Args:
        folder: for them all.
        seed: of what is drawn.
        tries: of each fault.
        kills: of real runs, at random.
    """

    def __init__(self, folder, seed=0, tries=1, kills=10):
        self.folder = folder
        self.random = random.Random(seed)
        self.tries = tries
        self.kills = kills
        self._number = 0

    def tally(self):
        """For each kind of fault: its name, how many were tried, and how many lost something."""
        yield from self.of_files()
        yield from self.of_runs()

    def of_files(self):
        """The kinds that need no training; see `tally`."""
        yield "killed at each step of saving", *self._count(self._killed_saving, STEPS)
        full = [step for step in STEPS if step != "link"]  # which is done without where it fails
        yield "disk full at each step of saving", *self._count(self._full_disk, full)
        yield "a bit flipped in a checkpoint", *self._count(self._flipped, range(10))

    def of_runs(self):
        """The kinds that meet trainings; see `tally`."""
        # Two epochs of four steps, and a checkpoint after each.
        self.args = [*command("fit", self._new()), "--trainer.checkpoint_every_n_minutes", "1e-9"]
        self.photos = Path(self.args[2]).parent / "photos"
        assert children.run([*self.args, "--output", str(self.folder / "whole")]) == 0
        self.whole = tensors(self.folder / "whole")
        full = ("fsync", "replace previous", "replace")
        yield "disk full in a run", *self._count(self._full_disk_in_a_run, full)
        yield "INT, TERM, USR1 and HUP", *self._count(self._signalled, SIGNALS)
        yield "SLURM's variables and signals", *self._count(self._queued, [signal.SIGUSR1])
        yield "a second process on the folder", *self._count(self._locked, [None])
        causes = ("input", "weight", "gradient")
        yield "NaN in input, weight and gradient", *self._count(self._diverged, causes)
        yield "an image vanished", *self._count(self._vanished, [None])
        result = Kills(self._new(), self.random.random()).run(self.kills)
        yield "killed at random", result.tried, result.lost

    def _count(self, survives, cases):
        """How often a fault was tried, and how often something was lost."""
        found = [survives(case) for _ in range(self.tries) for case in cases]
        return len(found), found.count(False)

    def _new(self):
        self._number += 1
        folder = self.folder / str(self._number)
        folder.mkdir()
        return folder

    def _saved(self):
        """A run's folder with two checkpoints."""
        folder = self._new()
        for step in (1, 2):
            save(folder / "checkpoints" / "last.ckpt", step)
        return folder, folder / "checkpoints" / "last.ckpt"

    def _loads(self, folder, *steps):
        """Whether the last checkpoint is one of these, and whole."""
        try:
            found = open_checkpoint("last", str(folder), read)[1]
        except (OSError, ValueError):
            return False
        return found["step"] in steps and bool((found["weights"] == found["step"]).all())

    def _killed_saving(self, step):
        folder, last = self._saved()
        return killed_at(step, lambda: save(last, 3)) and self._loads(folder, 2, 3)

    def _full_disk(self, step):
        folder, last = self._saved()
        try:
            with fail_at(step):
                save(last, 3)
        except OSError as error:
            return str(last) in str(error) and self._loads(folder, 2)
        return False

    def _flipped(self, _):
        folder, last = self._saved()
        content = bytearray(last.read_bytes())
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        last.write_bytes(content)
        return self._loads(folder, 1, 2)

    # Of real runs

    def _step(self):
        return self.random.randint(2, _STEPS - 1)

    def _ends_whole(self, run, *codes):
        """Whether a run that ended with a code as expected is gone on with to the same end."""
        *before, code = codes
        left = not any(run.glob("checkpoints/[!.]*.ckpt")) or open_checkpoint("last", run, read)
        return (
            bool(left)
            and code in before
            and children.run([*self.args, "--output", str(run)]) == 0
            and same(tensors(run), self.whole)
        )

    def _faulty(self, run, fault, *more):
        """Run with a fault, a context manager, in the process of the run."""
        opened = contextlib.ExitStack()
        args = [*self.args, "--output", str(run), *more]
        return children.run(args, before=lambda: opened.enter_context(fault))

    def _full_disk_in_a_run(self, step):
        # Not the first, which takes nothing's place.
        run, count, after = self._new(), [], self.random.randint(2, 5)
        write = WholeCheckpoints.save_checkpoint

        def full(self, *args, **options):
            count.append(1)
            with fail_at(step) if len(count) == after else contextlib.nullcontext():
                write(self, *args, **options)

        fault = mock.patch.object(WholeCheckpoints, "save_checkpoint", full)
        return self._ends_whole(run, 1, self._faulty(run, fault))

    def _signalled(self, number):
        run = self._new()
        args = [*self.args, "--output", str(run)]
        code = children.run(args, self._step(), self.random.uniform(0, 0.1), number)
        return self._ends_whole(run, 0, 128 + number, code)

    def _queued(self, _):
        run, work = self._new(), self._new()
        leave_requeue_file(checkpoint("fit"), work)
        codes = requeued([*self.args, "--output", str(run)], work, (2, 2, 2))
        return codes == [138, 143, -9, 0] and same(tensors(run), self.whole)

    def _at(self, step, act):
        """Do something with the model and the batch, before a step, counted from 0."""
        start = StopAndSave.on_train_batch_start

        def begin(self, trainer, model, batch, i):
            if trainer.global_step == step:
                act(model, batch)
            start(self, trainer, model, batch, i)

        return mock.patch.object(StopAndSave, "on_train_batch_start", begin)

    @contextlib.contextmanager
    def _reading_anew(self, fault):
        """The same fault, of images that no process keeps decoded."""
        with mock.patch("densesiam.data.modules.two_views.KEPT", 0), fault:
            yield

    def _locked(self, _):
        run, codes = self._new(), self._new() / "code"
        args = [*self.args, "--output", str(run)]
        fault = self._at(self._step(), lambda *_: codes.write_text(str(children.run(args))))
        return (
            self._faulty(run, fault) == 0
            and codes.read_text() == "1"
            and same(tensors(run), self.whole)
        )

    def _diverged(self, cause):
        def act(model, batch):
            weight = next(model.projector.parameters())
            if cause == "input":
                batch["view1"].fill_(torch.nan)
            elif cause == "weight":
                with torch.no_grad():
                    weight.view(-1)[0] = torch.nan
            else:
                weight.register_hook(lambda gradient: gradient * torch.nan)

        run = self._new()
        return self._ends_whole(run, 1, self._faulty(run, self._at(self._step(), act)))

    def _vanished(self, _):
        run, photo = self._new(), self.random.choice(sorted(self.photos.iterdir()))
        aside = self._new() / photo.name

        def vanish(*_):
            shutil.move(photo, aside)
            photo.touch()

        # In the first epoch, so that its turn comes in the second at the latest.
        fault = self._at(self.random.randrange(4), vanish)
        code = self._faulty(run, self._reading_anew(fault), "--data.max_unreadable", "0")
        shutil.move(aside, photo)
        return self._ends_whole(run, 1, code)


def main(args=None):
    """Print the table; 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=3, help="of each fault")
    parser.add_argument("--kills", type=int, default=10, help="of real runs, at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    lost = 0
    with tempfile.TemporaryDirectory() as folder, _quiet(Path(folder) / "said.txt") as table:
        trials = Trials(Path(folder), options.seed, options.tries, options.kills)
        print(f"{'fault':36}{'tried':>8}{'survived':>10}{'lost':>6}", file=table, flush=True)
        for name, tried, failed in trials.tally():
            lost += failed
            print(f"{name:36}{tried:8}{tried - failed:10}{failed:6}", file=table, flush=True)
    return int(lost > 0)


@contextlib.contextmanager
def _quiet(path):
    """What the runs say goes to a file, and is told where something else went wrong.

    Yields:
        What was standard output.
    """
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("w") as said, os.fdopen(kept[0], "w", closefd=False) as table:
        for number in (1, 2):
            os.dup2(said.fileno(), number)
        try:
            yield table
        except BaseException:
            table.write(path.read_text()[-5000:])
            raise
        finally:
            sys.stdout.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


if __name__ == "__main__":
    raise SystemExit(main())
