"""The learning rate over a training."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["fixed", "steps", "cosine"]


@dataclass(frozen=True)
class Schedule:
    r"""The learning rate of each step, as a share of the highest: warm-up times what follows.

    .. math::
        \min\left(1, \frac{t + 1}{\text{warmup}}\right) \cdot \begin{cases}
            1 & \text{fixed} \\
            0.1^{\,|\{m \in \text{milestones}: m \le t\}|} & \text{steps} \\
            \frac12 (1 + \cos \pi \frac{t - \text{begin}}{\text{steps} - \text{begin}})
                & \text{cosine}
        \end{cases}

    Args:
        kind: "fixed", "steps" or "cosine".
        steps: of the whole training; where the cosine reaches 0.
        warmup: steps over which the rate rises.
        milestones: rising numbers of steps, at each of which the rate falls to a tenth.
        begin: the step at which the cosine begins to fall.
    """

    kind: Kind
    steps: float
    warmup: int = 0
    milestones: Sequence[int] = ()
    begin: int = 0

    def share(self, step: int) -> float:
        """The share at a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "cosine":
            done = (step - self.begin) / (self.steps - self.begin) if step > self.begin else 0.0
            return warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return warm * 0.1 ** bisect_right(self.milestones, step)
