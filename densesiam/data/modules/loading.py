"""What all data modules share: their place among the processes, and how loaders load."""

from typing import Any

import lightning as L
import torch

from densesiam.data.order.sampler import TrainingSampler
from densesiam.data.sets.substitutes import Errors


class LoadingModule(L.LightningDataModule):
    """A data module whose loaders have worker processes.

    Attributes:
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        errors: what to do about training images that cannot be read; see `ImageFiles`.
        max_unreadable: greatest share of an epoch's images that others may take the place of.
    """

    batch_size: int
    num_workers: int
    seed: int
    errors: Errors
    max_unreadable: float

    def _check(self) -> None:
        """Refuse settings that every data module has.

        Raises:
            ValueError: one is out of its range.
        """
        if min(self.num_workers, self.seed) < 0:
            raise ValueError(
                f"num_workers and seed must not be negative, got {self.num_workers}, {self.seed}"
            )
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be from 0 to 1, got {self.max_unreadable}")

    def _place(self) -> tuple[int, int]:
        """Number of processes, and which one this is."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _training_order(self, num_images: int, samples: int | None) -> TrainingSampler:
        """The order of the training images, from where a resumed training stands.

        Args:
            num_images: in the data set.
            samples: draws in an epoch, over all processes; None for one pass over the images.
        """
        sampler = TrainingSampler(num_images, samples, self.seed, *self._place())
        if self.trainer is not None:
            # On resuming, Lightning starts the first loop over the loader before it tells the
            # epoch, and workers fetch ahead: without this they would replay epoch 0.
            # `current_epoch` is behind by one after a checkpoint from an epoch's end.
            loop = self.trainer.fit_loop
            epoch: Any = loop.epoch_progress.current  # typed as its base class
            sampler.set_epoch(epoch.processed)
            # PiCIE asks for loaders of its own while the training's is there; those are whole.
            if epoch.processed < epoch.ready and self.trainer.train_dataloader is None:
                batch: Any = loop.epoch_loop.batch_progress.current
                sampler.skip(batch.processed * self.batch_size)
        return sampler

    def _loading(self) -> dict[str, Any]:
        """Arguments of every loader."""
        return {
            # Loaders draw a seed for their workers. Drawn from torch's own generator, a resumed
            # training would be one draw ahead of, or behind, one that was not stopped.
            "generator": torch.Generator().manual_seed(self.seed),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
