"""``densesiam validate``: score a model on labelled images."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback

from densesiam.callbacks import ProgressBar, RunReport, write_json
from densesiam.commands.checkpoints import read_checkpoint, resolve_checkpoint
from densesiam.commands.console import first_process, interactive, say
from densesiam.commands.scoring import score_table, set_evaluator
from densesiam.commands.trainer import TrainerOptions, build_trainer, interruptible
from densesiam.commands.training import add_config_arguments, build
from densesiam.data.module import SegmentationData
from densesiam.evaluation import ClusterMetrics
from densesiam.methods import DenseSiamSegmentation

SUMMARY = "Score a model on labelled images."
USAGE = "--config FILE [--ckpt_path CHECKPOINT] [other settings]"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config_arguments(
        parser,
        DenseSiamSegmentation,
        SegmentationData,
        'Checkpoint to score: "best" or "last" in the --output folder, or a path.',
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    ckpt_path = None
    if config.ckpt_path is not None:
        ckpt_path = resolve_checkpoint(config.ckpt_path, config.output)
        read_checkpoint(ckpt_path)  # a wrong file should be named before anything is built
    built = build(parser, config, ckpt_path)
    folder = None if config.output is None else Path(config.output)
    validate(built.model, built.data, built.options, folder, ckpt_path)


def validate(
    model: DenseSiamSegmentation,
    data: SegmentationData,
    options: TrainerOptions,
    folder: Path | None = None,
    ckpt_path: Path | None = None,
) -> None:
    """Score a model on the labelled validation set, and print a line for each class.

    Args:
        model: the model.
        data: with a validation set.
        options: how to run it.
        folder: where ``validation.json`` goes; None writes nothing.
        ckpt_path: the trained tensors; None scores the model as it starts.

    Raises:
        ValueError: there is no validation set, or the checkpoint does not fit.
    """
    if data.val is None:
        raise ValueError("no labelled images: give data.val (see the comments in configs/)")
    callbacks: list[Callback] = [ProgressBar(RunReport(Path()))] if interactive() else []
    trainer = build_trainer(options, callbacks, logger=False)
    set_evaluator(model, data)
    if ckpt_path is not None:
        model.load_state_dict(read_checkpoint(ckpt_path)["state_dict"])
    with interruptible(trainer):
        trainer.validate(model, data, verbose=False)
    say(score_table(model))
    if folder is not None and first_process():
        assert isinstance(model.evaluator, ClusterMetrics)
        scores = {name: value.tolist() for name, value in model.evaluator.compute().items()}
        content = {
            "checkpoint": ckpt_path and str(ckpt_path),
            "classes": list(data.val.classes.names),
        }
        write_json(folder / "validation.json", {**content, **scores})
        say(f"wrote {folder / 'validation.json'}")
