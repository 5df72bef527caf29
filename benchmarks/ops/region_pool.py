"""region_pool against softmax and a batched matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import release
from benchmarks.ops.inputs import features
from benchmarks.problem import Part, Problem, Setting, Shape
from densesiam import ops

SHAPES = (
    Shape("27 regions", 128, 80, 80, classes=27, own=True),
    Shape("128 regions", 128, 80, 80, classes=128, own=True),
    Shape("512 regions", 128, 40, 40, classes=512),
    Shape("C = 16", 16, 80, 80, classes=27),
    Shape("C = 2048", 2048, 14, 14, classes=27),
    Shape("small", 32, 14, 14, classes=27),
    Shape("large", 128, 160, 160, classes=27, batch=4),
    Shape("odd", 127, 79, 83, classes=29),
)
SCALED = SHAPES[0]


def _eager(values: Tensor, logits: Tensor) -> Tensor:
    return torch.einsum("bnhw,bchw->bnc", logits.softmax(1), values)


def _product(values: Tensor, mask: Tensor) -> Tensor:
    return torch.bmm(mask.flatten(2), values.flatten(2).transpose(1, 2))


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads features and logits; backward reads and writes both."""
    pixels = setting.batch * shape.height * shape.width
    elements, mask = pixels * shape.channels, pixels * shape.classes
    return Problem(
        op="region_pool",
        shape=(
            f"{setting.batch}x{shape.channels}x{shape.height}x{shape.width}, "
            f"{shape.classes} regions"
        ),
        make=lambda: [
            features(setting, channels, shape.height, shape.width)
            for channels in (shape.channels, shape.classes)
        ],
        ours=ops.region_pool,
        eager=_eager,
        release=release.region_pool,
        parts={
            "bmm": Part(
                lambda values, logits: [values, logits.detach().softmax(1).requires_grad_()],
                _product,
                differentiable=(0, 1),
            )
        },
        differentiable=(0, 1),
        forward_bytes=(elements + mask) * setting.itemsize
        + setting.batch * shape.classes * shape.channels * 4,
        backward_bytes=2 * (elements + mask) * setting.itemsize,
        products=6 * elements * shape.classes,
        exponentials=2 * mask,
        operands=setting.dtype,
    )
