"""label_map against interpolate and argmax."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.inputs import features
from benchmarks.problem import Problem
from densesiam import ops


def problems(batch: int, channels_last: bool) -> list[Problem]:
    """The evaluation protocol: 27 classes, 80 x 80 to 320 x 320."""

    def eager(logits: Tensor) -> Tensor:
        return F.interpolate(logits, (320, 320), mode="bilinear").argmax(1)

    return [
        Problem(
            op="label_map",
            shape=f"{batch}x27x80x80 -> 320x320",
            make=lambda: [features(batch, 27, 80, 80, channels_last=channels_last).detach()],
            ours=lambda logits: ops.label_map(logits, 320),
            eager=eager,
            differentiable=(),
            read=batch * 27 * 80 * 80,
            written=2 * batch * 320 * 320,  # int64
            ties=1e-3,  # interpolation rounds differently: near ties may fall either way
        )
    ]
