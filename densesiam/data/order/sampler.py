"""Which images make an epoch, in which order, on which process."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from densesiam.data.order.draws import Draw, seeded_generator

# Both samplers are DistributedSamplers for two reasons: Lightning tells such samplers the epoch,
# and leaves them in place in distributed runs instead of putting its own in front.


class TrainingSampler(DistributedSampler[Draw]):
    """Shuffled draws of an epoch, divided among the processes.

    An epoch is `samples` draws, taken from as many shuffled passes over the images as that needs;
    the repetitions of an image get draws of their own. The processes' parts are disjoint and of
    one length: where the draws do not divide evenly, the last few are left out, different images
    in each epoch.

    As with every distributed sampler, `set_epoch` has to be called before each epoch; Lightning
    does. Without it, every epoch repeats the draws of the first.

    Args:
        num_images: images in the data set.
        samples: draws in an epoch, over all processes; None for one pass over the images.
        seed: seed of the order.
        num_replicas: number of processes.
        rank: number of this process.

    Raises:
        ValueError: no draws for each process, or a rank out of range.
    """

    def __init__(
        self,
        num_images: int,
        samples: int | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        images: Any = range(num_images)  # the base class asks for no more than a length
        super().__init__(images, num_replicas, rank, seed=seed)
        self.num_images = num_images
        self.samples = num_images if samples is None else samples
        if self.samples < num_replicas:
            raise ValueError(f"{self.samples} samples do not suffice for {num_replicas} processes")
        self.num_samples = self.samples // num_replicas
        self.total_size = self.num_samples * num_replicas
        self._done = 0

    def skip(self, draws: int) -> None:
        """Leave out what this process has drawn already, in the next iteration only.

        The length stays that of an epoch.

        Args:
            draws: how many, from the epoch's start.
        """
        self._done = draws

    def __iter__(self) -> Iterator[Draw]:
        """The draws of this process, in the epoch that was set last."""
        done, self._done = self._done, 0
        start = self.rank + done * self.num_replicas
        return itertools.islice(self._draws(), start, self.total_size, self.num_replicas)

    def _draws(self) -> Iterator[Draw]:
        """Shuffled passes over the images, without end."""
        epoch = self.epoch
        for repetition in itertools.count():
            generator = seeded_generator(self.seed, epoch, repetition)
            for index in torch.randperm(self.num_images, generator=generator).tolist():
                yield Draw(index, epoch, repetition)


class EvaluationSampler(DistributedSampler[Draw]):
    """Every image once and in order, divided among the processes.

    All processes get the same number of draws, because Lightning's distributed steps wait for one
    another. Where the images do not divide evenly, the first few come again, as repetition 1:
    `LabelledImages` makes those all void, so that no image counts twice.

    Args:
        num_images: images in the data set.
        num_replicas: number of processes.
        rank: number of this process.

    Raises:
        ValueError: a rank out of range.
    """

    def __init__(self, num_images: int, num_replicas: int = 1, rank: int = 0) -> None:
        images: Any = range(num_images)  # the base class asks for no more than a length
        super().__init__(images, num_replicas, rank, shuffle=False)
        self.num_images = num_images

    def __iter__(self) -> Iterator[Draw]:
        """The draws of this process."""
        for position in range(self.rank, self.total_size, self.num_replicas):
            repetition, index = divmod(position, self.num_images)
            yield Draw(index, repetition=repetition)
