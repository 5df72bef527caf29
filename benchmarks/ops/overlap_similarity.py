"""overlap_similarity against our own two operations."""

from __future__ import annotations

from torch import Tensor

from benchmarks.ops.inputs import crop_boxes, features
from benchmarks.problem import Problem
from densesiam import ops


def problems(batch: int, channels_last: bool) -> list[Problem]:
    """GridSample after the predictor: K = 7 on the maps of a ResNet's C2 and C5."""
    return [_problem(batch, 256, 56, 7, channels_last), _problem(batch, 2048, 7, 7, channels_last)]


def _problem(batch: int, channels: int, side: int, size: int, channels_last: bool) -> Problem:
    pixels, cells = batch * channels * side * side, batch * channels * size * size

    def two_ops(p: Tensor, z: Tensor, boxes_p: Tensor, boxes_z: Tensor) -> Tensor:
        samples = ops.overlap_sample(p, boxes_p, size), ops.overlap_sample(z, boxes_z, size)
        return ops.pixel_similarity(*samples)

    touched = min(pixels, 4 * cells)
    return Problem(
        op="overlap_similarity",
        shape=f"{batch}x{channels}x{side}x{side}, K = {size}",
        make=lambda: [
            features(batch, channels, side, side, channels_last=channels_last),
            features(batch, channels, side, side, channels_last=channels_last),
            crop_boxes(batch),
            crop_boxes(batch),
        ],
        ours=lambda p, z, boxes_p, boxes_z: ops.overlap_similarity(p, z, boxes_p, boxes_z, size),
        eager=two_ops,
        read=2 * touched,
        written=1,
        read_backward=2 * touched,
        written_backward=pixels,
    )
