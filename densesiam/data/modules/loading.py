"""What all data modules share: their place among the processes, and how loaders load."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from densesiam.data.order.sampler import TrainingSampler
from densesiam.data.sets.substitutes import Errors


class LoadingModule(L.LightningDataModule):
    """A data module whose loaders have worker processes.

    Attributes:
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        worker_timeout: seconds after which loaders give up waiting for a batch; 0 never.
        errors: what to do about training images that cannot be read; see `ImageFiles`.
        max_unreadable: greatest share of an epoch's images that others may take the place of.
    """

    batch_size: int
    num_workers: int
    seed: int
    worker_timeout: float
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
        if not 0 <= self.worker_timeout < math.inf:
            raise ValueError(f"worker_timeout must be 0 or more seconds, got {self.worker_timeout}")
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
            "timeout": self.worker_timeout if self.num_workers else 0,
            "pin_memory": torch.cuda.is_available(),
        }


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
