"""What a method is put together from, when it is not put together from our operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import release
from benchmarks.device import DEVICE
from benchmarks.ops.inputs import grid_sample
from benchmarks.problem import Part
from densesiam.nn import RegionSim, region_contrast


@dataclass(frozen=True)
class Kit:
    """The operations of the method, by someone else than us."""

    sample: Callable[[Tensor, Tensor, int], Tensor]
    cosine: Callable[[Tensor, Tensor], Tensor]
    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    pseudo_label_loss: Callable[[Tensor], Tensor]
    region_pool: Callable[[Tensor, Tensor], Tensor]


LIBRARY = Kit(
    sample=grid_sample,
    cosine=lambda p, z: -F.cosine_similarity(p, z.detach()).mean(),
    cross_entropy=lambda p, z: F.cross_entropy(p, z.detach().softmax(1)),
    pseudo_label_loss=lambda z: F.cross_entropy(z, z.detach().argmax(1)),
    region_pool=lambda f, z: torch.einsum("bnhw,bchw->bnc", z.softmax(1), f),
)
RELEASE = Kit(
    sample=release.crop_flip_resize,
    cosine=release.cosine,
    cross_entropy=release.cross_entropy,
    pseudo_label_loss=release.pseudo_label_loss,
    region_pool=release.region_pool,
)


def symmetric(loss: Callable[[Tensor, Tensor], Tensor], p: list[Tensor], z: list[Tensor]) -> Tensor:
    """Half of each view's loss toward the other."""
    return 0.5 * (loss(p[0], z[1]) + loss(p[1], z[0]))


def region_loss(kit: Kit, heads: RegionSim, maps: list[Tensor], logits: list[Tensor]) -> Tensor:
    """RegionSim on a kit's pooling; its heads and its contrast are small, and everyone's."""
    pooled = [kit.region_pool(f, z) for f, z in zip(maps, logits, strict=True)]
    shape = pooled[0].shape[:2]
    z = [heads.projector(regions.flatten(0, 1)) for regions in pooled]
    p = [heads.predictor(embedding).unflatten(0, shape) for embedding in z]
    z = [embedding.unflatten(0, shape) for embedding in z]
    weight = torch.ones(shape[0], device=DEVICE)
    return symmetric(lambda a, b: region_contrast(a, b, heads.tau, weight), p, z)


def products_alone(heads: Sequence[nn.Module], views_at_once: bool) -> Part:
    """The heads' 1x1 convolutions on both views, and nothing else: all of their matrix products.

    Args:
        heads: chains, each to be run on the features.
        views_at_once: whether both views are one batch, as the method has them.
    """
    chains = [nn.Sequential(*_convolutions(head)) for head in heads]
    parameters = [p for chain in chains for p in chain.parameters()]

    def call(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        batches = [torch.cat([first, second])] if views_at_once else [first, second]
        return torch.stack([chain(batch).sum() for batch in batches for chain in chains])

    return Part(lambda *inputs: [*inputs[:2], *parameters], call, tuple(range(2 + len(parameters))))


def operations(heads: Sequence[nn.Module], pixels: int) -> int:
    """Multiplications and additions of those, forward and backward."""
    weights = sum(c.weight.numel() for head in heads for c in _convolutions(head))
    both_views, forward_and_backward = 2, 3
    return 2 * both_views * forward_and_backward * pixels * weights


def _convolutions(head: nn.Module) -> list[nn.Conv2d]:
    return [m for m in head.modules() if isinstance(m, nn.Conv2d)]
