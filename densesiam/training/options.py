"""How to train: the options, and Lightning's trainer made from them."""

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import nn

from densesiam.training.checkpoints import WholeCheckpoints
from densesiam.training.report import ProgressBar

# Under SLURM, Lightning loads any hpc_ckpt_N.ckpt of its root folder, the working directory unless
# told otherwise, where it is given no checkpoint. No file can lie here.
_NO_FOLDER = os.path.join(os.devnull, "none")


@dataclass(frozen=True)
class TrainerOptions:
    """How to train, whatever the model and the data.

    Args:
        max_epochs: how many epochs to train.
        accelerator: "auto" takes a GPU where there is one.
        devices: how many devices on each machine; "auto" takes all.
        num_nodes: how many machines.
        strategy: how devices work together, one of Lightning's; "auto" is distributed data
            parallelism where there are several.
        precision: of the arithmetic: "bf16-mixed" takes half the time of "32-true" on devices that
            have bfloat16, "64-true" tells rounding from faults. "auto" takes bf16-mixed where the
            device has it and the command's training loses nothing by it, else 32-true; a run that
            goes on keeps its own.
        sync_batchnorm: normalise over the images of all devices, as the method does. torch can on
            GPUs only: "auto" does there, and on CPUs lets each process normalise over its own.
        accumulate_grad_batches: batches whose gradients make one step of the optimiser.
        gradient_clip_val: greatest norm of the gradient; null leaves it.
        limit_train_batches: end each epoch after so many batches; null takes all.
        validate_every_n_epochs: how often to score the validation set, where there is one.
        picture_every_n_epochs: how often to picture photographs beside their segmentation.
        log_every_n_steps: how often to write the losses to TensorBoard.
        checkpoint_every_n_minutes: how often to write a checkpoint within an epoch; each epoch's
            end writes one anyway.
        monitor_every_n_steps: how often to look for signs of collapse (docs/collapse.md).
        deterministic: refuse operations whose result may differ between two equal runs.
    """

    max_epochs: int = 10
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["auto", "64-true", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    sync_batchnorm: bool | Literal["auto"] = "auto"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    limit_train_batches: int | None = None
    validate_every_n_epochs: int = 1
    picture_every_n_epochs: int = 5
    log_every_n_steps: int = 10
    checkpoint_every_n_minutes: float = 15.0
    monitor_every_n_steps: int = 50
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in (
            "max_epochs",
            "validate_every_n_epochs",
            "picture_every_n_epochs",
            "monitor_every_n_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        if not self.checkpoint_every_n_minutes > 0:
            raise ValueError(
                "trainer.checkpoint_every_n_minutes must be positive, got "
                f"{self.checkpoint_every_n_minutes}"
            )


class TimmSyncBatchNorm(TorchSyncBatchNorm):
    """Synchronised batch normalisation that knows timm's layers.

    Lightning's own asks torch to convert them, and loses the activation that timm's
    ``BatchNormAct2d`` holds: an EfficientNet would train as if it had none, and say nothing.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Let all batch normalisation of a model be that of all processes together."""
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Let each process normalise for itself again."""
        if not isinstance(model, SyncBatchNormAct):
            return super().revert(model)
        there: Any = model  # it has more than its class declares
        alone = BatchNormAct2d(there.num_features, there.eps, there.momentum, there.affine)
        alone.act, alone.drop = there.act, there.drop
        alone.weight, alone.bias = there.weight, there.bias
        alone.running_mean, alone.running_var = there.running_mean, there.running_var
        alone.num_batches_tracked = there.num_batches_tracked
        return alone.train(there.training)


def probe(options: TrainerOptions) -> L.Trainer:
    """A trainer that knows devices and processes, and is not to be used.

    Raises:
        ValueError: a GPU is asked for, and there is none.
        RuntimeError: a queue's settings that Lightning cannot do with.
    """
    settings: dict[str, Any] = {
        "accelerator": accelerator_name(options),
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "strategy": options.strategy,
        "default_root_dir": _NO_FOLDER,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    alone = L.Trainer(**settings, plugins=[LightningEnvironment()])
    return L.Trainer(**settings) if isinstance(alone.strategy, ParallelStrategy) else alone


def accelerator_name(options: TrainerOptions) -> str:
    """What to train on, as Lightning and torch call it: "cpu" or "cuda".

    Lightning's own "auto" would take other kinds of devices too.

    Raises:
        ValueError: a GPU is asked for, and there is none.
    """
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator is gpu, and torch finds none here: set it to auto or cpu "
            "(python -m densesiam.collect_env says what is installed)"
        )
    there = options.accelerator == "gpu" or (
        options.accelerator == "auto" and torch.cuda.is_available()
    )
    return "cuda" if there else "cpu"


def synchronised(options: TrainerOptions) -> bool:
    """Whether batch normalisation is over the images of all processes together."""
    if options.sync_batchnorm == "auto":
        return can_synchronise(options)
    return options.sync_batchnorm


def can_synchronise(options: TrainerOptions) -> bool:
    """Whether torch can normalise over several processes on such devices."""
    return accelerator_name(options) == "cuda"


def build_trainer(
    options: TrainerOptions, callbacks: list[Callback], logger: Any, **more: Any
) -> L.Trainer:
    """Lightning's trainer, set up as the options say.

    It never takes or leaves a checkpoint that was not asked for: what Lightning does of its own
    accord under SLURM is off.

    Args:
        options: how to train; of a precision that is still "auto" float32 becomes.
        callbacks: all of them; checkpoints and a progress bar are on if they are among these.
        logger: Lightning's; False for none.
        **more: other settings of the trainer.

    Raises:
        ValueError: a GPU is asked for, and there is none.
    """
    settings: dict[str, Any] = {
        **asdict(options),
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "default_root_dir": _NO_FOLDER,
        **more,
    }
    settings["check_val_every_n_epoch"] = settings.pop("validate_every_n_epochs")
    for of_callbacks in (
        "picture_every_n_epochs",
        "checkpoint_every_n_minutes",
        "monitor_every_n_steps",
    ):
        settings.pop(of_callbacks)
    if options.precision == "auto":
        settings["precision"] = "32-true"
    settings["plugins"] = [WholeCheckpoints()]
    settings["sync_batchnorm"] = synchronised(options)
    if settings["sync_batchnorm"]:
        settings["plugins"].append(TimmSyncBatchNorm())
    settings["accelerator"] = accelerator_name(options)
    strategy = probe(options).strategy
    if not isinstance(strategy, ParallelStrategy):
        settings["plugins"].append(LightningEnvironment())  # whatever a queue's variables say
    if options.strategy == "auto" and isinstance(strategy, DDPStrategy):
        # RegionSim's heads learn nothing until it starts.
        settings["strategy"] = "ddp_find_unused_parameters_true"
    trainer = L.Trainer(
        **settings,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
    )
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # it writes hpc_ckpt_N.ckpt in a signal handler
    return trainer
