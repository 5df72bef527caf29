"""What all data modules share: their settings, their loaders, their place among processes."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from multiprocessing.process import BaseProcess
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from densesiam.data.order.draws import Draw
from densesiam.data.order.sampler import EvaluationBatches, EvaluationSampler, TrainingSampler
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.substitutes import Errors


class LoadingModule(L.LightningDataModule):
    """Batches of random draws to train on; and, in a `ScoringModule`, labelled samples to score.

    A subclass defines `training_set`.

    Args:
        batch_size: samples in a training batch, on each process.
        val_batch_size: samples in a validation batch, on each process. Labelled images of several
            sizes share batches with those of their own size alone.
        samples_per_epoch: draws in a training epoch, over all processes. More than there are
            images repeats them with fresh draws; fewer is a random part. None: each image once.
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        seed: all draws and orders follow from it.
        errors: what to do about training images that cannot be read; see `ImageFiles`.
        max_unreadable: share of an epoch's images, rounded up; if more cannot be read, training
            ends.
        worker_timeout: seconds to wait for a batch from processes that load data; 0 waits for ever.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        batch_size: int = 32,
        val_batch_size: int = 1,
        samples_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        errors: Errors = "skip",
        max_unreadable: float = 0.1,
        worker_timeout: float = 600.0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("val_batch_size", val_batch_size),
            ("samples_per_epoch", samples_per_epoch),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if min(num_workers, seed) < 0:
            raise ValueError(
                f"num_workers and seed must not be negative, got {num_workers}, {seed}"
            )
        if not 0 <= worker_timeout < math.inf:
            raise ValueError(f"worker_timeout must be 0 or more seconds, got {worker_timeout}")
        if not 0 <= max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be from 0 to 1, got {max_unreadable}")
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.samples_per_epoch = samples_per_epoch
        self.num_workers = num_workers
        self.seed = seed
        self.errors = errors
        self.max_unreadable = max_unreadable
        self.worker_timeout = worker_timeout

    def training_set(self) -> Any:
        """Make the data set to train on.

        Raises:
            ValueError: nothing was given.
        """
        raise NotImplementedError  # each module has its own

    @cached_property
    def trained_on(self) -> Any:
        """`training_set`, made once: large folders take long to look through."""
        return self.training_set()

    def num_batches(self, processes: int = 1) -> int:
        """Batches of an epoch on each of several processes; all are full.

        Raises:
            ValueError: there are not enough images for one.
        """
        samples = self.samples_per_epoch or len(self.trained_on)
        batches = samples // processes // self.batch_size
        if not batches:
            raise ValueError(
                f"fewer images than the batch: {samples} samples an epoch on {processes} "
                f"process(es) do not fill one batch of {self.batch_size}; lower data.batch_size, "
                "or raise data.samples_per_epoch so that images repeat with fresh draws"
            )
        return batches

    def train_dataloader(self) -> DataLoader:
        """Loader of full batches in random order; the rest of an epoch is left out.

        Raises:
            ValueError: nothing to train on, or not enough for one batch.
        """
        self.num_batches(self._place()[0])
        return self._loader(
            self.trained_on, self.batch_size, self._training_order(), drop_last=True
        )

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples to a batch.

        Raises:
            ValueError: their images differ in size.
        """
        sizes = {tuple(sample["image"].shape[1:]) for sample in samples if "image" in sample}
        if len(sizes) > 1:
            found = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
            raise ValueError(
                f"images of different sizes cannot share a batch: {found} pixels; give them one "
                "size, as a transform with a crop does"
            )
        return default_collate(samples)

    def _place(self) -> tuple[int, int]:
        """Number of processes, and which one this is."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _training_order(self) -> TrainingSampler:
        """The order of the training images, from where a resumed training stands."""
        images = len(self.trained_on)
        sampler = TrainingSampler(images, self.samples_per_epoch, self.seed, *self._place())
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

    def _loader(
        self,
        dataset: Dataset,
        batch_size: int | None,
        order: Sampler | None = None,
        drop_last: bool = False,
    ) -> DataLoader:
        return WatchedLoader(
            dataset,
            batch_size=batch_size,  # by name: Lightning makes a loader like it, to predict
            sampler=order,
            drop_last=drop_last,
            collate_fn=self.collate,
            # Loaders draw a seed for their workers. Drawn from torch's own generator, a resumed
            # training would be one draw ahead of, or behind, one that was not stopped.
            generator=torch.Generator().manual_seed(self.seed),
            num_workers=self.num_workers,
            worker_init_fn=_leave_signals_to_parent,
            persistent_workers=self.num_workers > 0,
            timeout=self.worker_timeout if self.num_workers else 0,
            pin_memory=torch.cuda.is_available(),
        )


class ScoringModule(LoadingModule):
    """A `LoadingModule` with labelled samples, each of which is scored once.

    A subclass defines `validation_set`.
    """

    def validation_set(self) -> Any:
        """Make the data set to score; None where nothing was given."""
        raise NotImplementedError  # each module has its own

    @cached_property
    def scored_on(self) -> Any:
        """`validation_set`, made once."""
        return self.validation_set()

    def check(self) -> None:
        """See before anything is trained that it can be scored: each label has its image's size.

        Raises:
            ImageReadError: a file cannot be read.
            ValueError: a label is of another size.
        """
        if isinstance(self.scored_on, LabelledFiles):
            self.scored_on.check_sizes()

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loader of what to score; no loader where nothing was given."""
        if self.scored_on is None:
            return []
        scored_on, count = self.scored_on, len(self.scored_on)
        if self.val_batch_size > 1 and isinstance(scored_on, LabelledFiles):
            batches = EvaluationBatches(count, self.val_batch_size, scored_on.shape, *self._place())
            return self._loader(_Several(scored_on), None, batches)
        order = EvaluationSampler(count, *self._place())
        return self._loader(scored_on, self.val_batch_size, order)


class _Several(Dataset):
    """Lists of samples, for a sampler that says which are to be in a batch.

    As a ``batch_sampler``, Lightning would put its own in front of it in distributed runs.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draws: Sequence[Draw]) -> list[Any]:
        return [self.dataset[draw] for draw in draws]


def _leave_signals_to_parent(worker: int) -> None:
    """Let what a queue or a terminal sends to all processes of a job be the main one's to handle.

    That one ends its step and writes a checkpoint; it could do neither if those that load its data
    were gone. SIGTERM from it still ends them.

    Args:
        worker: number of the process, as a ``worker_init_fn`` gets it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Only a wait for a signal tells who has sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_parent, args=(os.getppid(),), daemon=True).start()


def _end_by_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class WatchedLoader(DataLoader):
    """A loader that gives up on worker processes which bring no batch for ``timeout`` seconds.

    torch's own timeout waits for a message. It does not end where a process hangs with half of one
    sent, or where it was stopped, since the tensors of a batch are asked of the process that has
    made them.

    Raises:
        RuntimeError: (when asked for a batch) the processes hang; they are ended.
    """

    def __iter__(self) -> Any:
        """The batches of an epoch."""
        iterator = super().__iter__()
        return self._watched(iterator) if self.timeout else iterator

    def _watched(self, iterator: Any) -> Iterator[Any]:
        watch = _Watch(iterator._workers, self.timeout)
        try:
            while True:
                try:
                    with watch:
                        batch = next(iterator)
                except StopIteration:
                    return
                yield batch
        finally:
            watch.end()


class _Watch:
    """End processes while which something is waited for too long.

    Args:
        processes: to end.
        seconds: how long may be waited.
    """

    def __init__(self, processes: Sequence[BaseProcess], seconds: float) -> None:
        self._processes = processes
        self._seconds = seconds
        self._until = math.inf
        self._hang = False
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def __enter__(self) -> None:
        self._until = time.monotonic() + self._seconds

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._until = math.inf
        if isinstance(error, Exception) and self._hang:
            raise RuntimeError(f"DataLoader timed out after {self._seconds} seconds") from error

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() >= self._until:
                self._hang = True
                for process in self._processes:
                    with suppress(ValueError):  # closed already
                        process.kill()
                return
