"""pseudo_label_loss against argmax, bincount and cross_entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import release
from benchmarks.ops.inputs import all_pairs, features
from benchmarks.problem import MEMORY_BOUND, Goal, KernelNames, Make, Part, Problem, Setting, Shape
from densesiam import ops

GOAL = Goal(3, 1.5, 0.25, memory=0.1)
SHAPES = (
    Shape("27 classes", 27, 80, 80, variant="none", own=True, goal=GOAL),
    Shape("27 classes, inverse", 27, 80, 80, variant="inverse", own=True, goal=GOAL),
    Shape("27 classes, weighted", 27, 80, 80, variant="weighted", own=True),  # what training runs
    Shape("128 classes", 128, 80, 80, variant="none"),
    Shape("512 classes", 512, 40, 40, variant="none"),
    Shape("small", 27, 14, 14, variant="none"),
    Shape("large", 27, 320, 320, variant="none", batch=4),
    Shape("odd", 29, 79, 83, variant="inverse"),
    Shape("5000 classes, inverse", 5000, 14, 14, variant="inverse", batch=4),
)
SCALED = SHAPES[0]
GPU_GOAL = MEMORY_BOUND


def _plain(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.detach().argmax(1))


def _inverse(logits: Tensor) -> Tensor:
    labels = logits.detach().argmax(1)
    counts = torch.bincount(labels.flatten(), minlength=logits.shape[1]).float()
    weights = torch.where(counts > 0, labels.numel() / ((counts > 0).sum() * counts), 0)
    weights = weights.to(logits.dtype)
    return F.cross_entropy(logits, labels, weights, reduction="none").mean()


def _weighted(logits: Tensor, weight: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, logits.detach().argmax(1), reduction="none")
    weights = weight.to(losses.dtype)
    return (losses.mean((1, 2)) * weights).sum() / weights.sum()


_EAGER: dict[str, Callable[..., Tensor]] = {
    "none": _plain,
    "inverse": _inverse,
    "weighted": _weighted,
}


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads the logits; backward reads them again and writes their gradient."""
    weighted = shape.variant == "weighted"
    rebalance = cast(Literal["none", "inverse"], "none" if weighted else shape.variant)
    elements = setting.batch * shape.channels * shape.height * shape.width
    pack, half = 16 // setting.itemsize, setting.itemsize == 2
    return Problem(
        op="pseudo_label_loss",
        shape=(f"{setting.batch}x{shape.channels}x{shape.height}x{shape.width}, {shape.variant}"),
        make=lambda: [
            features(setting, shape.channels, shape.height, shape.width),
            *([all_pairs(setting)] if weighted else []),
        ],
        ours=lambda logits, weight=None: ops.pseudo_label_loss(
            logits, rebalance=rebalance, weight=weight
        ),
        eager=_EAGER[shape.variant],
        release=release.pseudo_label_loss if shape.variant == "none" else None,
        parts={
            "cross_entropy": Part(
                lambda logits, *_: [logits, logits.detach().argmax(1)], F.cross_entropy
            )
        },
        forward_bytes=elements * setting.itemsize + 4,
        backward_bytes=2 * elements * setting.itemsize,
        exponentials=2 * elements,
        # An element, loaded and converted: compared and its place kept, an exponential of two
        # instructions, added.
        forward_instructions=elements * (1 / pack + half + 5),
        # Stored as well: an exponential, compared with the label, a difference and a product.
        backward_instructions=elements * (2 / pack + 1.5 * half + 5),
        mean=True,
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    return [
        f"label_pixels_{names.layout}<{names.source}",
        f"label_backward_{names.layout}<{names.source}",
    ]


def triton_kernels(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    """Call every kernel of the Triton module, on tensors without memory."""
    logits, targets = make(64, 27, 6400), make(64, 27, 6400)
    op.pseudo_label_loss(logits, targets, "none", None, "mean", None)
    yield "targets"
    loss, *kept = op.pseudo_label_loss(logits, None, "inverse", None, "mean", None)
    op.pseudo_label_loss_backward(loss, logits, "mean", None, *kept)
    yield "inverse"
