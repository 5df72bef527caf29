"""NaN and infinity: noticed without waiting for the device, and never written to a checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from densesiam.methods.base import Trained
from densesiam.models.weights import listed, non_finite

_NEVER = torch.iinfo(torch.int64).max


class DivergenceError(RuntimeError):
    """A training whose losses or weights are no longer finite."""


@dataclass(frozen=True)
class _Step:
    """What is remembered of a step until it is looked at; tensors are on the device still."""

    number: int
    lr: float
    scalars: Mapping[str, Tensor]


class Finite(Callback):
    """End a training whose losses or weights are no longer finite.

    Each step's losses are remembered where they are, on the device. They are looked at every n-th
    step, at the end of an epoch, and before a checkpoint is written: the device is waited for only
    then, once for all of them. Before a checkpoint is written its weights and the optimiser's state
    are looked at as well, since a step can break them by its gradient, with a loss that is finite.

    Under "16-mixed" the gradient's scaler leaves out steps whose gradient is not finite, so a loss
    that is not finite breaks nothing; that is expected now and then. There the training ends where
    every step since the last look was such a one, as nothing is learned then.

    All processes look at the same steps and end together. It must come before callbacks that report
    an epoch.

    Args:
        every_n_steps: batches from one look to the next, at least 1.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._steps: list[_Step] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew."""
        self._steps = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the number of the step that is coming."""
        self._number = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Remember the losses, and look at them in their turn.

        Raises:
            DivergenceError: one was not finite.
        """
        assert isinstance(pl_module, Trained)
        lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self._steps.append(_Step(self._number, lr, pl_module.latest))
        if len(self._steps) >= self.every_n_steps:
            self.look(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look before the epoch is reported.

        Raises:
            DivergenceError: a loss was not finite.
        """
        self.look(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look before a checkpoint is written, at its tensors too.

        Raises:
            DivergenceError: a loss, a weight or a number of the optimiser is not finite.
        """
        self.look(trainer)
        tensors = dict(checkpoint["state_dict"])
        for number, optimizer in enumerate(checkpoint.get("optimizer_states", ())):
            for key, state in optimizer["state"].items():
                for name, value in state.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer {number}: {name} {key}"] = value
        if names := non_finite(tensors):
            raise DivergenceError(
                f"at step {trainer.global_step} {len(names)} of {len(tensors)} tensors hold NaN or "
                f"infinity ({listed(names)}): {_advice(trainer, _highest_lr(trainer))}"
            )

    def look(self, trainer: L.Trainer) -> None:
        """Look at the losses since the last look, in all processes together.

        Raises:
            DivergenceError: one was not finite, or with a scaler, all were not.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        found = torch.stack(
            [torch.stack([*step.scalars.values()]).isfinite().all() for step in steps]
        )
        first = int(found.int().argmin())  # waits for the device
        bad = not bool(found.any() if _scaled(trainer) else found.all())
        number = torch.tensor(steps[first].number if bad else _NEVER, device=found.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(number, dist.ReduceOp.MIN)
        if number == _NEVER:
            return
        step = steps[first]
        if step.number == number and bad:
            values = {name: value.item() for name, value in step.scalars.items()}
            losses = ", ".join(f"{name} {value:g}" for name, value in values.items())
        else:
            losses = "in another process"
        raise DivergenceError(
            f"the loss is no longer finite at step {int(number)} ({losses}): "
            f"{_advice(trainer, step.lr)}"
        )


def _scaled(trainer: L.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _highest_lr(trainer: L.Trainer) -> float:
    return max(
        (group["lr"] for opt in trainer.optimizers for group in opt.param_groups), default=math.nan
    )


def _advice(trainer: L.Trainer, lr: float) -> str:
    """What the training was like, what is left of it, and what to try."""
    kept = getattr(trainer.checkpoint_callback, "dirpath", None)
    return (
        f"training has diverged, at learning rate {lr:g} in precision {trainer.precision}. "
        f"Checkpoints{f' in {kept}' if kept else ''} are from before. Lower model.lr or "
        "model.base_lr, or let it rise over more model.warmup_epochs (or model.warmup_steps); set "
        'trainer.gradient_clip_val; try trainer.precision "32-true" if it was another'
    )
