"""A training run: built from a config file, with its folder, its files, its end and Ctrl-C."""

import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from densesiam._writing import write_text
from densesiam.training.checkpoints import (
    CheckpointConfig,
    check_resumable,
    keep_checkpoint,
    open_checkpoint,
    read_checkpoint,
)
from densesiam.training.console import Interrupted, first_process, interactive, say
from densesiam.training.divergence import Finite
from densesiam.training.folders import check_writable, claim_folder
from densesiam.training.monitor import CollapseMonitor, Kind
from densesiam.training.options import TrainerOptions, build_trainer
from densesiam.training.report import ProgressBar, RunReport


def add_config_arguments(
    parser: ArgumentParser,
    model: type,
    data: type,
    checkpoint_help: str,
    unused: Collection[str] = (),
) -> None:
    """Add the arguments of a command that a config file describes.

    Args:
        parser: of the command.
        model: class of the setting ``model``.
        data: class of the setting ``data``.
        checkpoint_help: what ``--ckpt_path`` is for.
        unused: options of the trainer that the command has no use for.
    """
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of settings, such as configs/folder.yaml. May be given several times; "
        "later files and options override earlier ones.",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="Folder of the run. Default: outputs/NAME, after the config file.",
    )
    parser.add_argument("--ckpt_path", type=str | None, help=checkpoint_help)
    parser.add_argument("--seed", type=int, default=0, help="All randomness follows from it.")
    parser.add_class_arguments(model, "model")
    parser.add_class_arguments(data, "data", skip={"predict", "seed"})
    parser.add_class_arguments(TrainerOptions, "trainer", skip=set(unused))


@dataclass(frozen=True)
class Built:
    """What a config file describes, made.

    Attributes:
        model: the model.
        data: the data module.
        options: how to train.
        config: the whole configuration, as YAML.
        ckpt_path: the checkpoint to start from, if one was given.
    """

    model: Any
    data: Any
    options: TrainerOptions
    config: str
    ckpt_path: Path | None


def build(parser: ArgumentParser, config: Namespace, ckpt_path: Path | None = None) -> Built:
    """Make the model and the data.

    Args:
        parser: of the command.
        config: its settings.
        ckpt_path: a checkpoint that will fill the model; weights that training started from then
            need not be there.
    """
    text = parser.dump(config.clone(), skip_unset=False)
    if ckpt_path is not None:
        config.model.weights = None
    L.seed_everything(config.seed, workers=True, verbose=False)
    try:
        built = parser.instantiate(config)
    except ValueError as error:
        if not str(error).startswith("Does not validate against any of the Union subtypes"):
            raise
        # A setting of several types: the parser tells of each why it is not that one, and the cause
        # is what went wrong with the object that was asked for.
        raise (error.__cause__ or error) from None
    built.data.seed = config.seed
    return Built(built.model, built.data, built.trainer, text, ckpt_path)


def start_run(
    parser: ArgumentParser, config: Namespace, command: str, kind: str = "segmentation"
) -> tuple[Built, Path]:
    """Make the model, the data and the folder of a training run, new or gone on with.

    Args:
        parser: of the command.
        config: its settings.
        command: its name, for the folder of a run without a config file.
        kind: what its method is for, see `Method`.

    Raises:
        ValueError: settings or a checkpoint that do not go together.
        OSError: a folder or a checkpoint that is not there, or cannot be written.
    """
    ckpt_path = None
    if config.ckpt_path is not None:
        ckpt_path, checkpoint = open_checkpoint(
            config.ckpt_path, config.output, lambda path: read_checkpoint(path, kind)
        )
        check_resumable(ckpt_path, checkpoint, config)
    if config.ckpt_path == "last":
        folder = Path(config.output)
        check_writable(folder)
    else:
        name = Path(str(config.config[-1])).stem if config.config else command
        folder = claim_folder(config.output, f"outputs/{name}")
    config.output = str(folder)
    return build(parser, config, ckpt_path), folder


@contextmanager
def training_run(
    command: str,
    built: Built,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> Iterator[L.Trainer]:
    """All of a training run but the training: its trainer, its files, its end.

    The folder gets ``config.yaml``, ``summary.json``, ``logs/`` (TensorBoard), and
    ``checkpoints/last.ckpt`` after every epoch.

    Args:
        command: that goes on with such a run.
        built: what to train.
        folder: the run's folder, which exists.
        callbacks: more than every run has.
        **trainer: more settings of the trainer.

    Yields:
        The trainer.

    Raises:
        Interrupted: Ctrl-C in the block; the last checkpoint is kept.
        ValueError: a batch of one image, or data that there are not; nothing is written then.
        OSError: images that are not there.
    """
    report = RunReport(folder / "summary.json")
    together: list[Callback] = [
        Finite(),
        report,
        _monitor(built),
        *callbacks,
        CheckpointConfig(built.config),
        keep_checkpoint(folder),
    ]
    if interactive():
        together.append(ProgressBar(report))
    logger = TensorBoardLogger(folder, name="", version="logs", default_hp_metric=False)
    runner = build_trainer(built.options, together, logger, **trainer)
    _check_batch(built, runner)
    built.data.train_dataloader()  # missing images should stop the run before it leaves any trace
    if first_process():
        write_text(folder / "config.yaml", built.config)
    if (loaded := built.model.encoder.weights_report) is not None:
        say(f"weights: {loaded}")
    with interruptible(runner, folder, command):
        yield runner
    say(f"finished: {folder / 'checkpoints'} has the checkpoints, {folder} all of the run")


def _monitor(built: Built) -> CollapseMonitor:
    """The collapse monitor; only where categories are learned, z are their logits."""
    kind: Kind = "cross_entropy" if built.model.kind == "segmentation" else "cosine"
    return CollapseMonitor(kind=kind, every_n_steps=built.options.monitor_every_n_steps)


def _check_batch(built: Built, trainer: L.Trainer) -> None:
    """Refuse batches of one image, whose normalisation would hide a wrong result."""
    together = built.data.batch_size * (trainer.world_size if built.options.sync_batchnorm else 1)
    if together < 2:
        raise ValueError(
            "data.batch_size is 1: batch normalisation needs at least 2 images, since over one "
            "alone it makes all look alike; raise data.batch_size (and data.samples_per_epoch "
            "where there are few images)"
        )


@contextmanager
def interruptible(
    trainer: L.Trainer, folder: Path | None = None, command: str = "fit"
) -> Iterator[None]:
    """Turn Lightning's own answer to Ctrl-C, an exit with code 1, into `Interrupted`.

    Args:
        trainer: whose work the block is.
        folder: of the run, if it leaves checkpoints.
        command: that goes on with such a run.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise Interrupted(_what_is_left(folder, command)) from None
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored


def _what_is_left(folder: Path | None, command: str) -> str:
    if folder is None:
        return "interrupted"
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return f"interrupted before the first epoch ended: {folder} has no checkpoint"
    return (
        f"interrupted; {last} holds the last whole epoch. To go on: "
        f"densesiam {command} --config {folder / 'config.yaml'} --ckpt_path last"
    )
