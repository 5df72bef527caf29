"""roi_align against torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.ops.inputs import features
from benchmarks.problem import Goal, KernelNames, Problem, Setting, Shape
from densesiam import ops

# `classes` is the number of boxes, 0 for one an image; `variant` the points a cell.
SHAPES = (
    # Detection: the finest level of a pyramid of an 800 x 1344 image, and a coarser one.
    Shape(
        "P2, 512 boxes",
        256,
        200,
        336,
        size=7,
        classes=512,
        variant="2 x 2",
        batch=1,
        own=True,
        goal=Goal(1),
    ),
    Shape(
        "P4, 512 boxes",
        256,
        50,
        84,
        size=7,
        classes=512,
        variant="adaptive",
        batch=2,
        own=True,
        goal=Goal(2),
    ),
    # Dense self-supervised learning: a box an image on a ViT-S's map.
    Shape("dense", 384, 14, 14, size=7, variant="adaptive", batch=32, own=True, goal=Goal(2)),
    Shape("masks", 256, 50, 84, size=14, classes=128, variant="2 x 2", batch=2),
    Shape("odd", 129, 37, 41, size=5, classes=33, variant="adaptive"),
)
SCALED = SHAPES[2]
GPU_GOAL = None  # not measured on one yet


def torchvision_roi_align(values: Tensor, boxes: Tensor, size: int, ratio: int) -> Tensor:
    """torchvision's, which wants boxes in the features' type.

    Coordinates in a half type would be off by whole pixels, so half features go up to float32 and
    their cells come down again.
    """
    from torchvision.ops import roi_align

    dtype = torch.promote_types(values.dtype, torch.float32)
    cells = roi_align(values.to(dtype), boxes.to(dtype), size, 1.0, ratio, aligned=True)
    return cells.to(values.dtype)


def random_boxes(count: int, batch: int, height: int, width: int) -> Tensor:
    """Boxes (R, 5) on the map; as large as a level of a pyramid has them where it is large.

    Their sides are U(1/2, 1) of the map's, but of 64 pixels at the most.
    """
    side = (0.5 + 0.5 * torch.rand(count, 2)) * torch.tensor([min(width, 64), min(height, 64)])
    corner = torch.rand(count, 2) * (torch.tensor([width, height]) - side)
    image = torch.arange(count).remainder(batch)[:, None]
    return torch.cat([image, corner, corner + side], dim=1).to(DEVICE)


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads what lies under the boxes, at most the map; backward writes the map."""
    batch, channels, size = setting.batch, shape.channels, shape.size
    boxes = shape.classes or batch
    ratio = 2 if shape.variant == "2 x 2" else -1
    pixels = batch * channels * shape.height * shape.width
    cells = boxes * channels * size * size
    under = boxes * channels * min(shape.height, 64) * min(shape.width, 64) * 9 // 16

    def make() -> list[Tensor]:
        return [
            features(setting, channels, shape.height, shape.width),
            random_boxes(boxes, batch, shape.height, shape.width),
        ]

    return Problem(
        op="roi_align",
        shape=f"{batch}x{channels}x{shape.height}x{shape.width}, {boxes} boxes -> {size}x{size}",
        make=make,
        ours=lambda values, boxes: ops.roi_align(values, boxes, size, 1.0, ratio, aligned=True),
        eager=lambda values, boxes: torchvision_roi_align(values, boxes, size, ratio),
        forward_bytes=(min(pixels, under) + cells) * setting.itemsize,
        backward_bytes=(cells + pixels) * setting.itemsize,
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    kind = f"{names.direct}, float"
    return [
        f"roi_align_{names.layout}<{kind}>",
        f"roi_align_backward_{names.layout}<{kind}>",
    ]
