"""Training with labels: what fine-tuning and linear probes have in common."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from densesiam.methods.base import Trained
from densesiam.methods.schedule import Schedule


class Supervised(Trained):
    """SGD over a fixed number of steps, and scores on a validation set.

    Steps rather than epochs, because the field's schedules for fine-tuning are counted so. They are
    counted here and not by Lightning's ``max_steps``: with that, it takes a checkpoint from the end
    of an epoch for one from within it, and a resumed training leaves batches out.

    A subclass defines `losses`, `count` and `score`; parameters without a gradient are left alone.

    Attributes:
        scores: the latest scores by name, in [0, 1]; empty before the first validation.
        scored_at: step of training that they belong to, -1 before the first validation.

    Args:
        max_steps: of the whole training; Lightning's ``max_epochs`` must leave room for them.
        lr: learning rate at its height, as it is: not scaled by the batch.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        schedule: ``"steps"``, the rate falls to a tenth at each of the milestones; or ``"cosine"``
            down to 0 at the end.
        milestones: steps at which the rate falls.
        warmup_steps: steps over which the rate rises linearly to its height.

    Raises:
        ValueError: an argument out of its range.
    """

    KEY = "densesiam_task"

    def __init__(
        self,
        max_steps: int = 10_000,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: Literal["steps", "cosine"] = "steps",
        milestones: Sequence[int] = (),
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(lr, momentum, weight_decay, schedule, ("steps", "cosine"))
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        if list(milestones) != sorted(set(milestones)) or min(milestones, default=1) < 1:
            raise ValueError(f"milestones must be rising numbers of steps, got {list(milestones)}")
        if schedule == "cosine" and milestones:
            raise ValueError("the cosine schedule has no milestones: leave them empty")
        self.max_steps = max_steps
        self.milestones = list(milestones)
        self.warmup_steps = warmup_steps
        self.scores: dict[str, float] = {}
        self.scored_at = -1
        self.save_hyperparameters()  # a subclass's arguments too

    def plan(self) -> tuple[float, Schedule]:
        """The highest learning rate, and how it changes."""
        assert self.lr is not None
        schedule = Schedule(self.schedule, self.max_steps, self.warmup_steps, self.milestones)
        return self.lr, schedule

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss on a training batch, by name; their sum is minimised."""
        raise NotImplementedError  # each task has its own

    def count(self, batch: Any) -> None:
        """Take note of a validation batch."""
        raise NotImplementedError  # each task has its own

    def score(self) -> dict[str, float]:
        """Scores, by name, of what was counted since the last call."""
        raise NotImplementedError  # each task has its own

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log_step({"loss": total, **losses}, len(batch["index"]))
        return total

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop after the last step."""
        if self.global_step >= self.max_steps:
            self.trainer.should_stop = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count a batch."""
        self.count(batch)

    def on_validation_epoch_end(self) -> None:
        """Score what was counted."""
        self.scores = self.score()
        self.scored_at = self.global_step
        self.log_dict({f"val/{name}": value for name, value in self.scores.items()})


def score_table(scores: Mapping[str, float]) -> str:
    """Scores as text, one a line, in percent."""
    width = max((len(name) for name in scores), default=0)
    return "\n".join(
        f"{name:<{width}}  {'-' if math.isnan(value) else f'{100 * value:.1f}':>5}"
        for name, value in scores.items()
    )
