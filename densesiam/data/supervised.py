"""Loaders of training with labels, whatever the labels are."""

from collections.abc import Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from densesiam.data.loading import LoadingModule
from densesiam.data.sampler import EvaluationSampler, TrainingSampler


class SupervisedData(LoadingModule):
    """Batches of labelled samples to train on, and each labelled sample once to score.

    A subclass defines `training_set` and `validation_set`, whose items are asked for by `Draw`, and
    `collate` where samples do not stack.

    Args:
        batch_size: samples in a training batch, on each process.
        val_batch_size: samples in a validation batch, on each process.
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        seed: all draws and orders follow from it.

    Raises:
        ValueError: a size below 1, a negative number of workers or seed.
    """

    def __init__(
        self, batch_size: int = 16, val_batch_size: int = 1, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if min(batch_size, val_batch_size) < 1 or min(num_workers, seed) < 0:
            raise ValueError(
                "batch_size and val_batch_size must be at least 1, num_workers and seed not "
                f"negative; got {batch_size}, {val_batch_size}, {num_workers}, {seed}"
            )
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.seed = seed

    def training_set(self) -> Dataset:
        """What to train on.

        Raises:
            ValueError: nothing was given.
        """
        raise NotImplementedError  # each task has its own

    def validation_set(self) -> Dataset | None:
        """What to score; None where nothing was given."""
        raise NotImplementedError  # each task has its own

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        return default_collate(samples)

    def train_dataloader(self) -> DataLoader:
        """Loader of full, shuffled batches; the rest of an epoch is left out.

        Raises:
            ValueError: there are not enough samples for one batch.
        """
        dataset = self.training_set()
        assert isinstance(dataset, Sized)
        replicas, rank = self._place()
        if len(dataset) // replicas < self.batch_size:
            raise ValueError(
                f"fewer images than the batch: {len(dataset)} on {replicas} process(es) do not "
                f"fill one batch of {self.batch_size}; lower data.batch_size"
            )
        sampler = TrainingSampler(len(dataset), None, self.seed, replicas, rank)
        if self.trainer is not None:
            # As in `SegmentationData`: a resumed training starts this loader before it tells it
            # the epoch.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=self.collate,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loader of what to score; no loader where nothing was given."""
        dataset = self.validation_set()
        if dataset is None:
            return []
        assert isinstance(dataset, Sized)
        sampler = EvaluationSampler(len(dataset), *self._place())
        return DataLoader(
            dataset,
            self.val_batch_size,
            sampler=sampler,
            collate_fn=self.collate,
            **self._loading(),
        )
