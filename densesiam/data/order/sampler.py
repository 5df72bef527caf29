"""Which images make an epoch, in which order, on which process."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from densesiam.data.order.draws import Draw, seeded_generator

# All samplers are DistributedSamplers for two reasons: Lightning tells such samplers the epoch,
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


class EvaluationBatches(DistributedSampler[list[Draw]]):
    """Every image once, in batches of images whose samples have one shape.

    A batch is full, or the last of its shape; images of one shape keep their order. All processes
    get the same number of batches, for the reason that `EvaluationSampler` names. Where the batches
    do not divide evenly, the first few come again, as repetition 1.

    Args:
        num_images: images in the data set.
        batch_size: images in a full batch.
        shape_of: the shape of an image's sample, by the image's index. Each is asked for once, when
            the batches are first asked for.
        num_replicas: number of processes.
        rank: number of this process.

    Raises:
        ValueError: a rank out of range.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        shape_of: Callable[[int], Hashable],
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        images: Any = range(num_images)  # the base class asks for no more than a length
        super().__init__(images, num_replicas, rank, shuffle=False)
        self.num_images = num_images
        self.batch_size = batch_size
        self.shape_of = shape_of

    @cached_property
    def _batches(self) -> list[list[int]]:
        """Indices of the images of each batch, over all processes."""
        full: list[list[int]] = []
        partial: dict[Hashable, list[int]] = {}
        for index in range(self.num_images):
            shape = self.shape_of(index)
            batch = partial.setdefault(shape, [])
            batch.append(index)
            if len(batch) == self.batch_size:
                full.append(partial.pop(shape))
        return full + list(partial.values())

    def __len__(self) -> int:
        return math.ceil(len(self._batches) / self.num_replicas)

    def __iter__(self) -> Iterator[list[Draw]]:
        """The batches of this process."""
        for turn in range(len(self)):
            position = turn * self.num_replicas + self.rank
            repetition, number = divmod(position, len(self._batches))
            yield [Draw(index, repetition=repetition) for index in self._batches[number]]
