"""Training with labels: what fine-tuning and linear probes have in common."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from densesiam.methods.base import Trained


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
    """Where a checkpoint has the name of its class."""

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
        super().__init__()
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
        if min(weight_decay, warmup_steps) < 0:
            raise ValueError(
                "weight_decay and warmup_steps must not be negative, "
                f"got {weight_decay}, {warmup_steps}"
            )
        if schedule not in ("steps", "cosine"):
            raise ValueError(f"schedule must be 'steps' or 'cosine', got {schedule!r}")
        if list(milestones) != sorted(set(milestones)) or min(milestones, default=1) < 1:
            raise ValueError(f"milestones must be rising numbers of steps, got {list(milestones)}")
        if schedule == "cosine" and milestones:
            raise ValueError("the cosine schedule has no milestones: leave them empty")
        self.max_steps = max_steps
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.milestones = list(milestones)
        self.warmup_steps = warmup_steps
        self.scores: dict[str, float] = {}
        self.scored_at = -1
        self.save_hyperparameters()  # a subclass's arguments too

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say whose it is."""
        checkpoint[self.KEY] = type(self).__name__

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

    def configure_optimizers(self) -> Any:
        """SGD with the schedule's factor of the learning rate at each step."""
        optimizer = torch.optim.SGD(
            [p for p in self.parameters() if p.requires_grad],
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.share_of_peak(step)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def share_of_peak(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the highest."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * min(step / self.max_steps, 1.0)))
        return warm * 0.1 ** bisect_right(self.milestones, step)


def score_table(scores: Mapping[str, float]) -> str:
    """Scores as text, one a line, in percent."""
    width = max((len(name) for name in scores), default=0)
    return "\n".join(
        f"{name:<{width}}  {'-' if math.isnan(value) else f'{100 * value:.1f}':>5}"
        for name, value in scores.items()
    )
