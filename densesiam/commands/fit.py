"""``densesiam fit``: train on a folder of images."""

from pathlib import Path

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from densesiam.callbacks import CheckpointConfig, ProgressBar, RunReport, SegmentationGrid
from densesiam.commands.checkpoints import keep_checkpoint
from densesiam.commands.console import first_process, interactive, say
from densesiam.commands.scoring import score_table, set_evaluator
from densesiam.commands.trainer import TrainerOptions, build_trainer, interruptible
from densesiam.commands.training import add_config_arguments, start_run
from densesiam.data.module import SegmentationData
from densesiam.methods import DenseSiamSegmentation

SUMMARY = "Train on a folder of images."
USAGE = "--config FILE [--data.train FOLDER] [--output FOLDER] [other settings]"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config_arguments(
        parser,
        DenseSiamSegmentation,
        SegmentationData,
        'Checkpoint to go on from: "last" in the --output folder, or a path.',
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    built, folder = start_run(parser, config, "fit")
    fit(built.model, built.data, built.options, folder, built.config, built.ckpt_path)


def fit(
    model: DenseSiamSegmentation,
    data: SegmentationData,
    options: TrainerOptions,
    folder: Path,
    config: str,
    ckpt_path: Path | None = None,
) -> None:
    """Train a model, and leave all of the run in one folder.

    The folder gets ``config.yaml``, ``summary.json``, ``logs/`` (TensorBoard), ``pictures/`` and
    ``checkpoints/``: ``last.ckpt`` after every epoch and, where there is a labelled validation set,
    ``best.ckpt`` by its mean IoU. Without labels nothing says which epoch is best: the loss does
    not, as it rises when RegionSim starts and falls when the categories collapse.

    Args:
        model: the model.
        data: what to train on.
        options: how.
        folder: the run's folder, which exists.
        config: the run's configuration, as YAML.
        ckpt_path: checkpoint to go on from.

    Raises:
        Interrupted: Ctrl-C; the last checkpoint is kept.
        ValueError: settings, data or a checkpoint that do not go together.
    """
    labelled = data.val is not None
    report = RunReport(folder / "summary.json")
    grid = SegmentationGrid(
        folder / "pictures", data.predict_transform, options.picture_every_n_epochs
    )
    callbacks: list[Callback] = [report, grid, CheckpointConfig(config), keep_checkpoint(folder)]
    if labelled:
        every = options.validate_every_n_epochs
        callbacks.append(
            keep_checkpoint(folder, "best", monitor="val/miou", mode="max", every_n_epochs=every)
        )
    if interactive():
        callbacks.append(ProgressBar(report))
    logger = TensorBoardLogger(folder, name="", version="logs", default_hp_metric=False)
    trainer = build_trainer(options, callbacks, logger, limit_val_batches=1.0 if labelled else 0)
    _check_batch(model, data, trainer, options)
    data.train_dataloader()  # missing images should stop the run before it leaves any trace
    if first_process():
        (folder / "config.yaml").write_text(config)
    with interruptible(trainer, folder):
        if labelled:
            set_evaluator(model, data)
            if ckpt_path is None:
                say("before training:")
                trainer.validate(model, data, verbose=False)
                say(score_table(model))
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        if labelled:
            if options.max_epochs % options.validate_every_n_epochs:
                trainer.validate(model, data, verbose=False)
            say("after training:")
            say(score_table(model))
    say(f"finished: {folder / 'checkpoints'} has the checkpoints, {folder} all of the run")


def _check_batch(
    model: DenseSiamSegmentation,
    data: SegmentationData,
    trainer: L.Trainer,
    options: TrainerOptions,
) -> None:
    """Refuse batches of one image, whose normalisation would hide a wrong result."""
    together = data.batch_size * (trainer.world_size if options.sync_batchnorm else 1)
    if together < 2:
        raise ValueError(
            "data.batch_size is 1: batch normalisation needs at least 2 images, since over one "
            "alone it makes every image hold all categories; raise data.batch_size (and "
            "data.samples_per_epoch where there are few images)"
        )
