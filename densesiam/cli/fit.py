"""``densesiam fit``: train on a folder of images."""

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback

from densesiam.data.modules.two_views import SegmentationData
from densesiam.methods import DenseSiamSegmentation
from densesiam.training.checkpoints import keep_checkpoint
from densesiam.training.console import say
from densesiam.training.pictures import SegmentationGrid
from densesiam.training.run import (
    RESUME_HELP,
    Run,
    add_change_argument,
    add_config_arguments,
    method_run,
    training_run,
)
from densesiam.training.scoring import describe_evaluation, score_table, set_evaluator

USAGE = "--config FILE [--data.train FOLDER] [--output FOLDER] [other settings]"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config_arguments(
        parser,
        DenseSiamSegmentation,
        SegmentationData,
        RESUME_HELP,
    )
    add_change_argument(parser)


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    with method_run("fit", parser, config) as training:
        if training is not None:
            fit(training)


def fit(run: Run) -> None:
    """Train a segmentation model, and leave all of the run in one folder.

    The folder gets ``config.yaml``, ``summary.json``, ``logs/`` (TensorBoard), ``pictures/`` and
    ``checkpoints/``: ``last.ckpt`` after every epoch and, where there is a labelled validation set,
    ``best.ckpt`` by its mean IoU. Without labels nothing says which epoch is best: the loss does
    not, as it rises when RegionSim starts and falls when the categories collapse.

    Args:
        run: what to train, on what, and where.

    Raises:
        Interrupted: a signal; the last checkpoint is kept.
        ValueError: settings, data or a checkpoint that do not go together.
    """
    built, folder = run.built, run.folder
    model, data, options = built.model, built.data, built.options
    labelled = data.val is not None
    callbacks: list[Callback] = [
        SegmentationGrid(
            folder / "pictures", data.predict_transform, options.picture_every_n_epochs
        )
    ]
    if labelled:
        every = options.validate_every_n_epochs
        callbacks.append(
            keep_checkpoint(folder, "best", monitor="val/miou", mode="max", every_n_epochs=every)
        )
    limit = 1.0 if labelled else 0
    with training_run(run, callbacks, limit_val_batches=limit) as trainer:
        if labelled:
            assert data.val is not None
            set_evaluator(model, data)
            for name, text in describe_evaluation(data.val).items():
                say(f"{name}: {text}")
            if built.ckpt_path is None:
                say("before training:")
                trainer.validate(model, data, verbose=False)
                say(score_table(model))
        trainer.fit(model, data, ckpt_path=built.ckpt_path, weights_only=True)
        if labelled:
            if options.max_epochs % options.validate_every_n_epochs:
                trainer.validate(model, data, verbose=False)
            say("after training:")
            say(score_table(model))
