"""overlap_sample against grid_sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import release
from benchmarks.ops.inputs import (
    cell_grid,
    crop_boxes,
    features,
    grid_sample,
    sample_grid,
    whole_boxes,
)
from benchmarks.problem import MEMORY_BOUND, Goal, KernelNames, Make, Part, Problem, Setting, Shape
from densesiam import ops

SHAPES = (
    # Crop, flip and resize.
    Shape("segmentation", 128, 80, 80, size=80, own=True, goal=Goal(5, 5, 0.4, memory=0)),
    Shape("C2, K = 7", 256, 56, 56, size=7, own=True),  # GridSample of pre-training
    Shape("C5, K = 7", 2048, 7, 7, size=7, own=True),
    Shape("K = 3", 256, 56, 56, size=3),
    Shape("K = 14", 256, 56, 56, size=14),
    Shape("small", 16, 14, 14, size=7),
    Shape("large", 128, 160, 160, size=160, batch=4),
    Shape("odd", 129, 79, 83, size=77),
    Shape("C = 16", 16, 80, 80, size=80),
    Shape("C = 2048", 2048, 20, 20, size=20, batch=4),
)
SCALED = SHAPES[0]
GPU_GOAL = MEMORY_BOUND


def roi_align(values: Tensor, boxes: Tensor, size: int) -> Tensor:
    """torchvision's: where it is missing, or of another torch, it alone is not measured."""
    from torchvision.ops import roi_align

    return roi_align(values, boxes, size, 1.0, 1, aligned=True)


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads the map and writes the samples; backward the other way round."""
    batch, channels, size = setting.batch, shape.channels, shape.size
    pixels, cells = batch * channels * shape.height * shape.width, batch * channels * size * size

    # Loads and stores in packs of 16 bytes where the layout has the channels side by side; half
    # types are converted.
    pack = 16 // setting.itemsize if setting.channels_last else 1
    half = setting.itemsize == 2

    def make() -> list[Tensor]:
        return [features(setting, channels, shape.height, shape.width), crop_boxes(batch)]

    def corners(values: Tensor, boxes: Tensor) -> list[Tensor]:
        """Boxes as roi_align wants them: (image, left, top, right, bottom) in pixels."""
        x1, y1, x2, y2 = boxes.unbind(1)
        sides = torch.stack([x1.minimum(x2), y1, x1.maximum(x2), y2], dim=1)  # it cannot mirror
        sides = sides * sides.new_tensor([shape.width, shape.height] * 2)
        image = torch.arange(batch, device=boxes.device)[:, None]
        return [values, torch.cat([image, sides], dim=1).to(values.dtype)]

    return Problem(
        op="overlap_sample",
        shape=f"{batch}x{channels}x{shape.height}x{shape.width} -> {size}x{size}",
        make=make,
        ours=lambda values, boxes: ops.overlap_sample(values, boxes, size),
        eager=lambda values, boxes: grid_sample(values, boxes, size),
        release=lambda values, boxes: release.crop_flip_resize(values, boxes, size),
        comparable=lambda inputs: [inputs[0], whole_boxes(batch)],
        parts={
            "grid_sample": Part(
                lambda values, boxes: [values, cell_grid(boxes, size)],
                sample_grid,
            ),
            "roi_align": Part(
                corners,
                lambda values, boxes: roi_align(values, boxes, size),
            ),
        },
        # At most four pixels are needed for a sample: a coarse grid need not read the map.
        forward_bytes=(min(pixels, 4 * cells) + cells) * setting.itemsize,
        backward_bytes=(cells + pixels) * setting.itemsize,
        # A sample: four corners loaded, mixed by (1 - w) a + w b three times, stored.
        forward_instructions=cells * (5 / pack + 6 + 4.5 * half),
        # A corner: loaded and added; a pixel: stored, and where nothing touches it nothing else.
        backward_instructions=4 * cells * (1 / pack + 1 + half) + pixels * (1 / pack + half / 2),
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    return [kernel(shape, names), kernel(shape, names, backward=True)]


def kernel(shape: Shape, names: KernelNames, backward: bool = False) -> str:
    """How the name of one of them begins."""
    op = "overlap_sample_backward" if backward else "overlap_sample"
    pixels, cells = shape.height * shape.width, shape.size**2
    if names.layout == "pixels":
        return f"{op}_pixels<SharedTaps, {names.direct}, float>"
    # Both of a block's groups of planes, 256 bytes a pixel and a cell, in 48 KB of shared memory.
    if shape.channels >= 32 and pixels % 4 and cells % 4 and pixels + cells < 190:
        return f"{op}_narrow<{names.element}, float>"
    if not backward:
        return f"{op}_planar<SharedTaps, {names.element}, float>"
    columns = 2 if names.element == "__half" and shape.width % 2 == 0 else 1
    return f"{op}_planar<SharedTaps, {columns}, {names.element}, float>"


def triton_kernels(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    """Call every kernel of the Triton module, on tensors without memory."""
    features, boxes = make(64, 128, 80, 80), torch.empty(64, 4, device="meta")
    op.overlap_sample(features, boxes, [80, 80])
    op.overlap_sample_backward(features, boxes, [80, 80], channels_last)
    yield "80 x 80"
