"""pixel_similarity against PyTorch's own losses."""

from __future__ import annotations

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor

from benchmarks import release
from benchmarks.ops.inputs import features
from benchmarks.problem import Part, Problem, Setting, Shape
from densesiam import ops

SHAPES = (
    Shape("cosine 128", 128, 80, 80, variant="cosine", own=True),
    Shape("cross-entropy 27", 27, 80, 80, variant="cross_entropy", own=True),
    Shape("cross-entropy 128", 128, 80, 80, variant="cross_entropy", own=True),
    Shape("cosine C = 16", 16, 80, 80, variant="cosine"),
    Shape("cosine C = 2048, K = 7", 2048, 7, 7, variant="cosine"),
    Shape("cross-entropy 512", 512, 40, 40, variant="cross_entropy"),
    Shape("small", 27, 14, 14, variant="cross_entropy"),
    Shape("large", 128, 160, 160, variant="cosine", batch=4),
    Shape("odd", 127, 79, 83, variant="cross_entropy"),
)
SCALED = SHAPES[2]


def _cosine(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z.detach()).mean()


def _cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    return F.cross_entropy(p, z.detach().softmax(1))


def problem(shape: Shape, setting: Setting) -> Problem:
    """Forward reads p and z; backward reads both again and writes p's gradient."""
    kind = cast(Literal["cosine", "cross_entropy"], shape.variant)
    elements = setting.batch * shape.channels * shape.height * shape.width
    cosine = kind == "cosine"
    parts = {"cross_entropy": Part(lambda p, z: [p, z.detach().softmax(1)], F.cross_entropy)}
    return Problem(
        op="pixel_similarity",
        shape=f"{setting.batch}x{shape.channels}x{shape.height}x{shape.width}",
        make=lambda: [
            features(setting, shape.channels, shape.height, shape.width) for _ in range(2)
        ],
        ours=lambda p, z: ops.pixel_similarity(p, z, kind),
        eager=_cosine if cosine else _cross_entropy,
        release=release.cosine if cosine else release.cross_entropy,
        parts={} if cosine else parts,
        forward_bytes=2 * elements * setting.itemsize + 4,
        backward_bytes=3 * elements * setting.itemsize,
        exponentials=0 if cosine else 4 * elements,
    )
