"""overlap_similarity against the library, and against our own two operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks import release
from benchmarks.ops import overlap_sample
from benchmarks.ops.inputs import accumulator, crop_boxes, features, grid_sample, whole_boxes
from benchmarks.problem import MEMORY_BOUND, Goal, KernelNames, Make, Problem, Setting, Shape
from densesiam import ops

SHAPES = (
    # GridSample after the predictor, on the maps of a ResNet's C2 and C5.
    Shape("C2, K = 7", 256, 56, 56, size=7, own=True, goal=Goal(two_ops=1, two_ops_memory=0.5)),
    Shape("C5, K = 7", 2048, 7, 7, size=7, own=True, goal=Goal(two_ops=1, two_ops_memory=0.5)),
    Shape("K = 3", 256, 56, 56, size=3),
    Shape("K = 14", 256, 56, 56, size=14),
    Shape("K = 80", 128, 80, 80, size=80),
    Shape("small", 16, 14, 14, size=7),
    Shape("odd", 129, 29, 31, size=11),
)
SCALED = SHAPES[0]
GPU_GOAL = MEMORY_BOUND


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads both maps where they are sampled; backward reads them again and writes one."""
    batch, channels, size = setting.batch, shape.channels, shape.size
    pixels, cells = batch * channels * shape.height * shape.width, batch * channels * size * size
    touched = min(pixels, 4 * cells)

    def make() -> list[Tensor]:
        maps = [features(setting, channels, shape.height, shape.width) for _ in range(2)]
        return [*maps, crop_boxes(batch), crop_boxes(batch)]

    def two_ops(p: Tensor, z: Tensor, boxes_p: Tensor, boxes_z: Tensor) -> Tensor:
        samples = ops.overlap_sample(p, boxes_p, size), ops.overlap_sample(z, boxes_z, size)
        return ops.pixel_similarity(*samples)

    def library(p: Tensor, z: Tensor, boxes_p: Tensor, boxes_z: Tensor) -> Tensor:
        samples = grid_sample(p, boxes_p, size), grid_sample(z, boxes_z, size)
        return -F.cosine_similarity(samples[0], samples[1].detach()).mean()

    def loops(p: Tensor, z: Tensor, boxes_p: Tensor, boxes_z: Tensor) -> Tensor:
        samples = [release.crop_flip_resize(m, b, size) for m, b in ((p, boxes_p), (z, boxes_z))]
        return release.cosine(*samples)

    return Problem(
        op="overlap_similarity",
        shape=f"{batch}x{channels}x{shape.height}x{shape.width}, K = {size}",
        make=make,
        ours=lambda p, z, boxes_p, boxes_z: ops.overlap_similarity(p, z, boxes_p, boxes_z, size),
        eager=library,
        release=loops,
        comparable=lambda inputs: [*inputs[:2], whole_boxes(batch), whole_boxes(batch)],
        peers={"two_ops": two_ops},
        forward_bytes=2 * touched * setting.itemsize + 4,
        backward_bytes=(2 * touched + pixels) * setting.itemsize,
    )


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    # In NCHW its samples lie wherever they lie: they are read one element at a time.
    pack = names.pack if names.layout == "pixels" else 1
    samples = f"<Cosine<float>, SampledSource<{names.element}, {pack}"
    return [
        f"pixel_loss_{names.layout}{samples}",
        f"pixel_loss_backward_{names.layout}{samples}",
        overlap_sample.kernel(shape, names, backward=True),
    ]


def triton_kernels(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    """Call every kernel of the Triton module, on tensors without memory."""
    for kind, channels, extent in (("cosine", 2048, 7), ("cross_entropy", 256, 56)):
        p, z = make(64, channels, extent, extent), make(64, channels, extent, extent)
        boxes, weight = p.new_empty(64, 4).float(), accumulator(p, 64)
        call = p, z, boxes, boxes, [7, 7], kind, weight, "mean"
        loss, statistics = op.overlap_similarity(*call, False)
        op.overlap_similarity_backward(loss, *call, statistics)
        yield f"overlap {kind}"
