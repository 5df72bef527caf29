"""Where randomness comes from: every draw follows from the seed, the epoch and the index alone.

Neither the global random state nor the worker that happens to load a sample has a say, so the same
seed gives the same views with any number of worker processes. Only where a data set is asked for a
plain index, as by a sampler of torch's, `Draw.of` takes an epoch from the global state.
"""

import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Draw:
    """Which image to load, and which of its random draws to make.

    Samplers yield draws in place of plain indices. The epoch thereby travels to the workers with
    the request itself and reaches persistent ones too, which keep the copy of the data set that
    they were started with.
    """

    index: int
    """Position of the image in the data set."""
    epoch: int = 0
    """Epoch of training: each gives fresh draws."""
    repetition: int = 0
    """How often the image came before in this epoch: each occurrence gives fresh draws."""

    @staticmethod
    def of(request: "Draw | SupportsIndex") -> "Draw":
        """The draw that a sampler asks for; a fresh one for a plain index.

        A plain index says nothing of the epoch, so its draws come from torch's global random state,
        as in torchvision's transforms. `torch.utils.data.DataLoader` seeds that state anew for the
        workers of each epoch. `torch.manual_seed` makes it repeatable, for one number of workers.

        Raises:
            TypeError: neither a draw nor an integer.
        """
        if isinstance(request, Draw):
            return request
        # Epochs that are counted never get so far.
        return Draw(operator.index(request), epoch=int(torch.randint(2**62, 2**63 - 1, ())))


def seeded_generator(seed: int, *key: int) -> torch.Generator:
    """A generator of its own for each seed and key, whatever numbers they are.

    Neighbouring seeds and keys are hashed apart (``numpy.random.SeedSequence``): they give
    unrelated streams.

    Args:
        seed: the experiment's seed, at least 0.
        key: non-negative integers naming the stream, such as epoch, repetition and index.

    Raises:
        ValueError: a negative seed or key.
    """
    if min((seed, *key)) < 0:
        raise ValueError(f"seed and key must not be negative, got seed={seed}, key={key}")
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number from U(low, high)."""
    return low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator).item()


def chance(generator: torch.Generator, probability: float) -> bool:
    """True with the given probability; always one draw, so that later draws do not shift."""
    return uniform(generator, 0.0, 1.0) < probability
