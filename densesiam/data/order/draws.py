"""Where randomness comes from: every draw follows from the seed, the epoch and the index alone.

Neither the global random state nor the worker that happens to load a sample has a say, so the same
seed gives the same views with any number of worker processes.
"""

from dataclasses import dataclass

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
