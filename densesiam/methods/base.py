"""What training methods share: an encoder, SGD, and checkpoints that say why they do not fit."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import lightning as L
import torch
from torch import Tensor
from torch.nn import Parameter

from densesiam.methods.schedule import Kind, Schedule
from densesiam.models import Encoder
from densesiam.models.weights import check_finite, explain_mismatch


class Trained(L.LightningModule):
    """A training by SGD: its optimiser and learning rate, what it logs, what it refuses to read.

    A subclass defines `plan`, and `parameter_groups` where parameters differ in their rate.

    Attributes:
        KEY: where a checkpoint has the name of its class.
        learns_in_bfloat16: whether it was tried with mixed precision and lost nothing, so that
            ``trainer.precision: auto`` may take it (docs/training.md).
        latest: the scalars of the latest training step by name, without gradient; from them it can
            be told how a training diverged.

    Args:
        lr: learning rate at its height; None where `plan` finds it.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        schedule: how the learning rate changes.
        schedules: what `schedule` may be.

    Raises:
        ValueError: an argument out of its range.
    """

    KEY: ClassVar[str]
    learns_in_bfloat16: ClassVar[bool] = False

    def __init__(
        self,
        lr: float | None,
        momentum: float,
        weight_decay: float,
        schedule: Kind,
        schedules: Sequence[Kind],
    ) -> None:
        super().__init__()
        if lr is not None and not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        if schedule not in schedules:
            expected = " or ".join(map(repr, schedules))
            raise ValueError(f"schedule must be {expected}, got {schedule!r}")
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.latest: dict[str, Tensor] = {}

    def plan(self) -> tuple[float, Schedule]:
        """The highest learning rate, and how it changes, of a training that is about to start.

        Raises:
            ValueError: settings that the training's length rules out.
        """
        raise NotImplementedError  # each training has its own

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters to train, each group with its ``lr_factor`` of the learning rate.

        A group that is named ``fixed`` has the highest rate throughout.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_factor": 1.0}]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD; the rate itself is set before each step."""
        return torch.optim.SGD(
            self.parameter_groups(), lr=0.0, momentum=self.momentum, weight_decay=self.weight_decay
        )

    # The rate may need the training loader: its batch size, and its length for a schedule. Asking
    # for those when optimisers are configured would start the loader before a resumed training
    # knows its epoch. So each step's rate is a plain function of what has become known by then, and
    # a scheduler, with a state to resume, is not needed.

    def on_train_start(self) -> None:
        """Find out the highest learning rate and its schedule; fold what is frozen.

        See `plan` and `Encoder.fold`.
        """
        self._peak_lr, self._schedule = self.plan()
        for module in self.modules():
            if isinstance(module, Encoder):
                module.fold()  # until the trainer, in the end, moves the model back

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the step that is coming, and log it."""
        lr = self._peak_lr * self._schedule.share(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            fixed = group.get("name") == "fixed"
            # Checkpoints of earlier versions have groups without a factor.
            group["lr"] = self._peak_lr if fixed else lr * group.get("lr_factor", 1.0)
        self.log("train/lr", lr)

    def log_step(self, scalars: Mapping[str, Tensor], batch_size: int) -> None:
        """Log a training step's scalars under ``train/``, and their means over the epoch.

        Args:
            scalars: by name, ``loss`` among them.
            batch_size: images, which weight the means.
        """
        self.latest = {name: value.detach() for name, value in scalars.items()}
        self.log_dict(
            {f"train/{name}": value for name, value in self.latest.items()},
            on_step=True,
            on_epoch=True,
            batch_size=batch_size,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say whose it is."""
        checkpoint[self.KEY] = type(self).__name__

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict, as `torch.nn.Module.load_state_dict` does.

        Raises:
            ValueError: it holds NaN or infinity.
        """
        check_finite(state_dict, "the checkpoint")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


class Method(Trained):
    """A method that trains an encoder by SGD.

    All arguments, a subclass's too, become hyperparameters and lie in every checkpoint, with the
    subclass's name under `KEY`.

    Attributes:
        encoder: what is trained; every method's lies here.
        kind: what the method is for: ``"segmentation"`` or ``"pre-training"``.

    Args:
        base_lr: learning rate for 256 images a step. It is scaled by the images that a step really
            has, over all devices and accumulated batches: base_lr * images / 256.
        lr: learning rate as it is, unscaled; it takes base_lr's place.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        schedule: ``"fixed"``, or ``"cosine"`` down to 0 at the end of training, step by step.
        warmup_epochs: epochs, or a part of one, over which the learning rate first rises linearly
            to its height; the schedule begins after them.
        **encoder: the arguments of `Encoder`.

    Raises:
        ValueError: an argument out of its range.
    """

    KEY = "densesiam_method"
    kind: ClassVar[str]

    def __init__(
        self,
        base_lr: float = 0.05,
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: Literal["fixed", "cosine"] = "fixed",
        warmup_epochs: float = 0.0,
        **encoder: Any,
    ) -> None:
        super().__init__(lr, momentum, weight_decay, schedule, ("fixed", "cosine"))
        if not base_lr > 0:
            raise ValueError(f"base_lr must be positive, got {base_lr}")
        if not 0 <= warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs must be finite and not negative, got {warmup_epochs}")
        self.base_lr = base_lr
        self.warmup_epochs = warmup_epochs
        self.encoder = Encoder(**encoder)
        self.save_hyperparameters()  # a subclass's arguments too
        self.save_hyperparameters({**_defaults(Encoder), **encoder})

    def fixed_rate_parameters(self) -> Iterable[Parameter]:
        """Parameters that keep the highest learning rate from the first step to the last."""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """``other``, ``backbone`` unless it is frozen, and ``fixed``; see `Trained`."""
        encoder = self.encoder
        backbone = list(encoder.backbone.parameters())
        fixed = list(self.fixed_rate_parameters())
        apart = {*backbone, *fixed}
        other = [p for p in self.parameters() if p not in apart]
        groups: list[dict[str, Any]] = [{"name": "other", "params": other, "lr_factor": 1.0}]
        if not encoder.frozen:
            groups.append(
                {"name": "backbone", "params": backbone, "lr_factor": encoder.backbone_lr_factor}
            )
        if fixed:
            groups.append({"name": "fixed", "params": fixed, "lr_factor": 1.0})
        return groups

    def plan(self) -> tuple[float, Schedule]:
        """The highest learning rate, and how it changes.

        Raises:
            ValueError: the loader does not state its batch size, which scales base_lr; the training
                has no end, which the cosine schedule needs, or is all warm-up.
        """
        peak = self.lr or self.base_lr * self._images_per_step() / 256
        steps = self.trainer.estimated_stepping_batches
        if self.schedule == "cosine" and steps == math.inf:
            raise ValueError("the cosine schedule needs an end: give the trainer max_epochs")
        steps_per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        warmup = self.warmup_epochs * steps_per_epoch if self.warmup_epochs else 0
        if not warmup < steps:
            raise ValueError(
                f"the learning rate would rise for {self.warmup_epochs} epochs, but the training "
                f"has no more than {steps} steps: lower warmup_epochs"
            )
        return peak, Schedule(self.schedule, steps, round(warmup), begin=round(warmup))

    def _images_per_step(self) -> int:
        """Images of one optimiser step, over all devices and accumulated batches."""
        loader = self.trainer.train_dataloader
        batch_size = getattr(loader, "batch_size", None) or getattr(
            getattr(loader, "batch_sampler", None), "batch_size", None
        )
        if batch_size is None:
            raise ValueError(
                "base_lr is scaled by the batch size, which this training loader "
                f"({type(loader).__name__}) does not state; give lr instead"
            )
        return batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict, as `torch.nn.Module.load_state_dict` does.

        Raises:
            ValueError: the state dict is another model's, and the message says which parts differ;
                or it holds NaN or infinity.
        """
        difference = explain_mismatch(self, state_dict) if strict else None
        if difference:
            raise ValueError(
                f"the checkpoint does not fit this {type(self).__name__}:\n{difference}\n"
                "Build the model with the arguments that the checkpoint was trained with, as "
                f"{type(self).__name__}.load_from_checkpoint does."
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @classmethod
    # Lightning's own names each argument; here they pass through.
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, **arguments: Any
    ) -> Self:
        """Load a trained model, as `LightningModule.load_from_checkpoint` does.

        The weights that training started from are not looked for, since the checkpoint has its own.
        Nothing but tensors and plain values is read, so a checkpoint cannot run code.
        """
        defaults = {"weights": None, "weights_only": True}
        return super().load_from_checkpoint(checkpoint_path, **{**defaults, **arguments})


def _defaults(class_type: type) -> dict[str, Any]:
    """Default values of a class's arguments."""
    parameters = inspect.signature(class_type).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
