"""Training images that cannot be read: counted, told, and too many end it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from densesiam.data import ImageReadError
from densesiam.data.modules.loading import LoadingModule
from densesiam.data.sets.layout import listing
from densesiam.training.console import say

_NAMED = 5  # files, in the summary


class UnreadableImages(Callback):
    """Count the images that others take the place of, and end a training that has too many.

    The batches say how many files before an image could not be read (`ImageFiles`). As for the
    losses (`Finite`), this is looked at every n-th step, at the end of an epoch and before a
    checkpoint is written, in all processes together. The counts go along in checkpoints.

    Args:
        data: what is trained on; ``max_unreadable`` is the share of an epoch's images, rounded up.
        every_n_steps: batches from one look to the next, at least 1.
    """

    KEY = "densesiam_unreadable"

    def __init__(self, data: LoadingModule, every_n_steps: int = 20) -> None:
        self.data = data
        self.every_n_steps = every_n_steps
        self._unseen: list[tuple[Tensor, Tensor]] = []  # of the batches since the last look
        self._files: set[int] = set()
        self._replaced = 0
        self._epoch = self._in_epoch = 0
        self._paths: list[str] = []

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``: ``images`` that failed, how often others were taken, the first."""
        return {
            "images": len(self._files),
            "replaced": self._replaced,
            "first": self._paths[:_NAMED],
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the names of what failed before."""
        self._name_files(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the epoch's count, or go on with that of a checkpoint from within it."""
        if trainer.current_epoch != self._epoch:
            self._epoch, self._in_epoch = trainer.current_epoch, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Remember the batch, and look where it is time.

        Raises:
            ImageReadError: too many images cannot be read.
        """
        self._unseen.append((batch["index"], batch["skipped"]))
        if len(self._unseen) >= self.every_n_steps:
            self.look(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look before the epoch is reported.

        Raises:
            ImageReadError: too many images cannot be read.
        """
        self.look(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell what was missing."""
        if self._files:
            say(
                f"images that could not be read: {len(self._files)}, replaced by others "
                f"{self._replaced} times: {listing(self._paths, _NAMED)}"
            )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the counts.

        Raises:
            ImageReadError: too many images cannot be read.
        """
        self.look(trainer)
        checkpoint[self.KEY] = {
            "files": sorted(self._files),
            "replaced": self._replaced,
            "epoch": self._epoch,
            "in_epoch": self._in_epoch,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the counts over."""
        if (counts := checkpoint.get(self.KEY)) is None:
            return  # an earlier version's
        self._files = set(counts["files"])
        self._replaced = counts["replaced"]
        self._epoch, self._in_epoch = counts["epoch"], counts["in_epoch"]

    def look(self, trainer: L.Trainer) -> None:
        """Look at the batches since the last look.

        Raises:
            ImageReadError: too many images of the epoch cannot be read.
        """
        if not self._unseen:
            return
        index, skipped = (torch.cat(each) for each in zip(*self._unseen, strict=True))
        self._unseen = []
        replaced = (skipped > 0).sum()  # all the images that were taken for others
        together = dist.is_available() and dist.is_initialized()
        if together:
            dist.all_reduce(replaced)
        if not replaced:
            return
        count = len(_paths(trainer))
        failed = {
            (i - back) % count
            for i, many in zip(index.tolist(), skipped.tolist(), strict=True)
            for back in range(1, many + 1)
        }
        if together:
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, failed)
            failed = set().union(*parts)
        self._files |= failed
        self._name_files(trainer)
        self._replaced += int(replaced)
        self._in_epoch += int(replaced)
        images = trainer.num_training_batches * self.data.batch_size * trainer.world_size
        if self._in_epoch > math.ceil(self.data.max_unreadable * images):
            raise ImageReadError(
                f"{self._in_epoch} of the {images} images of epoch {self._epoch + 1} could not be "
                f"read, more than the share of {self.data.max_unreadable:g} that "
                f"data.max_unreadable allows: {listing(self._paths, _NAMED)}. See whether the "
                "folder is there, then go on with --ckpt_path auto; or raise the setting"
            )

    def _name_files(self, trainer: L.Trainer) -> None:
        paths = _paths(trainer)
        # The folder of a run that goes on may have fewer.
        self._paths = [str(paths[i]) for i in sorted(self._files) if i < len(paths)]


def _paths(trainer: L.Trainer) -> Sequence[Path]:
    loader: Any = trainer.train_dataloader  # Lightning's type allows nests of loaders
    return loader.dataset.paths
