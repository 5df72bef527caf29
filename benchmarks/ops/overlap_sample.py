"""overlap_sample against grid_sample."""

from __future__ import annotations

from benchmarks.ops.inputs import crop_boxes, features, grid_sample
from benchmarks.problem import Problem
from densesiam import ops


def problems(batch: int, channels_last: bool) -> list[Problem]:
    """Crop, flip and resize of segmentation; GridSample of pre-training."""
    return [
        _problem(batch, 128, 80, 80, channels_last),
        _problem(batch, 256, 56, 7, channels_last),
        _problem(batch, 2048, 7, 7, channels_last),
    ]


def _problem(batch: int, channels: int, side: int, size: int, channels_last: bool) -> Problem:
    pixels, cells = batch * channels * side * side, batch * channels * size * size
    return Problem(
        op="overlap_sample",
        shape=f"{batch}x{channels}x{side}x{side} -> {size}x{size}",
        make=lambda: [
            features(batch, channels, side, side, channels_last=channels_last),
            crop_boxes(batch),
        ],
        ours=lambda values, boxes: ops.overlap_sample(values, boxes, size),
        eager=lambda values, boxes: grid_sample(values, boxes, size),
        # At most four pixels are needed for a sample: a coarse grid need not read the map.
        read=min(pixels, 4 * cells),
        written=cells,
        read_backward=cells,
        written_backward=pixels,
    )
