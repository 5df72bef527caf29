"""The command ``densesiam``: train, validate, segment photographs, or see all of it in a demo."""

import difflib
import logging
import os
import re
import signal
import sys
import warnings

# Before torch starts its threads: idle ones are to sleep rather than to spin. Where cores are
# shared with other programs, spinning ones keep each other from working; the demo then trained on
# 2 images a second, against 11 like this.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from densesiam import __version__
from densesiam.callbacks import (
    CheckpointConfig,
    PredictionWriter,
    ProgressBar,
    RunReport,
    SegmentationGrid,
    write_json,
)
from densesiam.data import Evaluation, SamplePhotos
from densesiam.data.module import SegmentationData
from densesiam.evaluation import ClusterMetrics
from densesiam.methods import DenseSiamSegmentation

_INTERRUPTED = 130  # what shells report after Ctrl-C: 128 + SIGINT

# What can go wrong through the user's input or machine; anything else is a fault of the program,
# and shows its traceback.
_EXPECTED = (ValueError, OSError, RuntimeError, ModuleNotFoundError)

# Warnings that Lightning raises in runs that are as they should be.
_NO_CONCERN_OF_THE_USER = (
    r".*isinstance\(treespec, LeafSpec\)",  # between Lightning and torch
    r"Checkpoint directory .* exists and is not empty",  # of course, where a run goes on
)


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
        precision: of the arithmetic: "bf16-mixed" is the quicker choice on recent GPUs.
        sync_batchnorm: normalise over the images of all devices, as the method does; several
            processes on CPUs cannot, and need false.
        accumulate_grad_batches: batches whose gradients make one step of the optimiser.
        gradient_clip_val: greatest norm of the gradient; null leaves it.
        limit_train_batches: end each epoch after so many batches; null takes all.
        validate_every_n_epochs: how often to score the validation set, where there is one.
        picture_every_n_epochs: how often to picture photographs beside their segmentation.
        log_every_n_steps: how often to write the losses to TensorBoard.
        deterministic: refuse operations whose result may differ between two equal runs.
    """

    max_epochs: int = 10
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    sync_batchnorm: bool = True
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    limit_train_batches: int | None = None
    validate_every_n_epochs: int = 1
    picture_every_n_epochs: int = 5
    log_every_n_steps: int = 10
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("max_epochs", "validate_every_n_epochs", "picture_every_n_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what to tell about it."""


class UsageError(ValueError):
    """A mistake on the command line or in a config file."""


# The commands


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
    callbacks: list[Callback] = [report, grid, CheckpointConfig(config), _checkpoint(folder)]
    if labelled:
        every = options.validate_every_n_epochs
        callbacks.append(
            _checkpoint(folder, "best", monitor="val/miou", mode="max", every_n_epochs=every)
        )
    if _interactive():
        callbacks.append(ProgressBar(report))
    logger = TensorBoardLogger(folder, name="", version="logs", default_hp_metric=False)
    trainer = _trainer(options, callbacks, logger, limit_val_batches=1.0 if labelled else 0)
    _check_batch(model, data, trainer, options)
    data.train_dataloader()  # missing images should stop the run before it leaves any trace
    if _first_process():
        (folder / "config.yaml").write_text(config)
    with _interruptible(trainer, folder):
        if labelled:
            _set_evaluator(model, data)
            if ckpt_path is None:
                _say("before training:")
                trainer.validate(model, data, verbose=False)
                _say(_table(model))
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        if labelled:
            if options.max_epochs % options.validate_every_n_epochs:
                trainer.validate(model, data, verbose=False)
            _say("after training:")
            _say(_table(model))
    _say(f"finished: {folder / 'checkpoints'} has the checkpoints, {folder} all of the run")


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
    callbacks: list[Callback] = [ProgressBar(RunReport(Path()))] if _interactive() else []
    trainer = _trainer(options, callbacks, logger=False)
    _set_evaluator(model, data)
    if ckpt_path is not None:
        model.load_state_dict(read_checkpoint(ckpt_path)["state_dict"])
    with _interruptible(trainer):
        trainer.validate(model, data, verbose=False)
    _say(_table(model))
    if folder is not None and _first_process():
        assert isinstance(model.evaluator, ClusterMetrics)
        scores = {name: value.tolist() for name, value in model.evaluator.compute().items()}
        content = {
            "checkpoint": ckpt_path and str(ckpt_path),
            "classes": list(data.val.classes.names),
        }
        write_json(folder / "validation.json", {**content, **scores})
        _say(f"wrote {folder / 'validation.json'}")


def predict(
    ckpt_path: Path,
    images: str,
    folder: Path,
    resize: int | None = None,
    accelerator: str = "auto",
) -> None:
    """Segment photographs with a trained model; see `PredictionWriter` for the files.

    Args:
        ckpt_path: the trained model.
        images: a folder, an image file, or "samples".
        folder: where the files go; it exists.
        resize: shorter side that the network sees, in pixels; by default the ``predict_transform``
            that the model was trained with.
        accelerator: "auto", "cpu" or "gpu".

    Raises:
        Interrupted: Ctrl-C; the files written so far are kept.
        ValueError: the checkpoint is none, or of another model.
        OSError: there are no images, or one cannot be read.
    """
    checkpoint = read_checkpoint(ckpt_path)
    model = DenseSiamSegmentation.load_from_checkpoint(
        ckpt_path, map_location="cpu", weights_only=True
    )
    if resize is None:
        trained = yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}"))
        resize = trained.get("data", {}).get("predict_transform", {}).get("resize")
    data = SegmentationData(predict=images, predict_transform=Evaluation(resize=resize))
    samples = images == "samples"
    root = None if samples or not Path(images).is_dir() else Path(images)
    writer = PredictionWriter(
        folder, root, model.num_classes, SamplePhotos.names if samples else None
    )
    callbacks: list[Callback] = [writer]
    if _interactive():
        callbacks.append(ProgressBar(RunReport(Path())))
    # One device: several would share out the images, and each would count only its own.
    options = TrainerOptions(accelerator=accelerator, devices=1)  # type: ignore[arg-type]
    trainer = _trainer(options, callbacks, logger=False)
    with _interruptible(trainer):
        trainer.predict(model, data, return_predictions=False)
    _say(f"wrote {folder}: labels/, overlays/, contact_sheet.jpg, legend.png, summary.json")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `fit`, without ever running code from it.

    Args:
        path: the file.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a segmentation model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: expected a .ckpt file that `fit` wrote")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles and archives fail in every way
        raise ValueError(
            f"{path} is not a checkpoint, or is damaged: expected a .ckpt file that `fit` wrote"
        ) from error
    hyperparameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not hyperparameters or "num_classes" not in hyperparameters or "state_dict" not in content:
        raise ValueError(
            f"{path} is not a segmentation model's checkpoint: expected a .ckpt file that "
            "`fit` wrote; weights of a backbone alone belong in model.weights"
        )
    return content


# Their parts


def _trainer(
    options: TrainerOptions, callbacks: list[Callback], logger: Any, **more: Any
) -> L.Trainer:
    settings: dict[str, Any] = {
        **asdict(options),
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        **more,
    }
    settings["check_val_every_n_epoch"] = settings.pop("validate_every_n_epochs")
    settings.pop("picture_every_n_epochs")
    if options.accelerator == "auto":  # Lightning's own would take other kinds of devices too
        settings["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    if options.strategy == "auto":
        probe = L.Trainer(**settings, logger=False, enable_checkpointing=False)
        if isinstance(probe.strategy, DDPStrategy):
            # RegionSim's heads learn nothing until it starts.
            settings["strategy"] = "ddp_find_unused_parameters_true"
    return L.Trainer(
        **settings,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
    )


def _checkpoint(folder: Path, name: str = "last", **criterion: Any) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder / "checkpoints",
        filename=name,
        save_on_train_epoch_end=True,  # with the epoch complete, so that training goes on from it
        enable_version_counter=False,
        **criterion,
    )


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


def _set_evaluator(model: DenseSiamSegmentation, data: SegmentationData) -> None:
    assert data.val is not None
    classes = data.val.classes
    model.evaluator = ClusterMetrics(
        model.num_classes,
        len(classes.names),
        data.val.ignore_index,
        classes.names,
        classes.thing_classes,
    )


def _table(model: DenseSiamSegmentation) -> str:
    assert isinstance(model.evaluator, ClusterMetrics)
    return model.evaluator.table()


@contextmanager
def _interruptible(trainer: L.Trainer, folder: Path | None = None) -> Iterator[None]:
    """Turn Lightning's own answer to Ctrl-C, an exit with code 1, into `Interrupted`."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise Interrupted(_what_is_left(folder)) from None
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored


def _what_is_left(folder: Path | None) -> str:
    if folder is None:
        return "interrupted"
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return f"interrupted before the first epoch ended: {folder} has no checkpoint"
    return (
        f"interrupted; {last} holds the last whole epoch. To go on: "
        f"densesiam fit --config {folder / 'config.yaml'} --ckpt_path last"
    )


def _resolve_checkpoint(name: str, output: str | None) -> Path:
    if name not in ("last", "best"):
        return Path(name)
    if output is None:
        raise ValueError(f"--ckpt_path {name} needs --output, the folder of the run")
    return Path(output, "checkpoints", f"{name}.ckpt")


def _check_resumable(path: Path, checkpoint: dict[str, Any], config: Namespace) -> None:
    """Refuse to go on from where there is nothing to go on."""
    if not checkpoint.get("optimizer_states"):
        raise ValueError(
            f"{path} holds no state of the optimiser, so training cannot go on from it"
        )
    done, wanted = checkpoint["epoch"] + 1, config.trainer.max_epochs
    if done >= wanted:
        raise ValueError(
            f"{path} has trained {done} epochs already, and trainer.max_epochs is {wanted}: "
            "raise it to train on"
        )
    before = yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}")).get("trainer", {})
    if config.model.schedule == "cosine" and before.get("max_epochs", wanted) != wanted:
        raise ValueError(
            f"the cosine schedule of {path} ends at epoch {before['max_epochs']}, so it cannot go "
            f"on to {wanted}: set trainer.max_epochs to {before['max_epochs']}"
        )


def claim_folder(output: str | None, default: str) -> Path:
    """Make an empty folder to write to.

    Args:
        output: the folder; it must not exist, or be empty.
        default: used if `output` is None; where it is taken, a number is added.

    Raises:
        FileExistsError: the folder holds something.
        OSError: it cannot be made or written to.
    """
    folder = Path(output or default)
    if not _first_process():
        return folder  # the first process makes it, and alone writes to it
    number = 2
    while output is None and folder.exists() and any(folder.iterdir()):
        folder = Path(f"{default}-{number}")
        number += 1
    try:
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(
                f"{folder} is not empty, and nothing there will be overwritten: give another "
                "--output (or, to go on with a run, --ckpt_path last)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _check_writable(folder)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror}): give another --output"
        ) from error
    return folder


def _check_writable(folder: Path) -> None:
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()


def _interactive() -> bool:
    """Whether somebody watches; a log file should not fill with progress bars."""
    return sys.stdout.isatty()


def _first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _say(text: str) -> None:
    if _first_process():
        print(text, flush=True)


# The command line


def _parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of the command, and those of its subcommands."""
    parser = ArgumentParser(
        prog="densesiam",
        version=__version__,
        exit_on_error=False,
        description="Learn to segment images without labels (DenseSiam, ECCV 2022). "
        "New here? Try `densesiam demo`, then "
        "`densesiam fit --config configs/folder.yaml --data.train YOUR_PHOTOS`.",
    )
    commands = parser.add_subcommands(dest="command", required=True)
    texts = {
        "fit": "Train on a folder of images.",
        "validate": "Score a model on labelled images.",
        "predict": "Segment photographs with a trained model.",
        "demo": "Train on nine photographs and segment them, in about two minutes.",
    }
    usages = {
        "fit": "--config FILE [--data.train FOLDER] [--output FOLDER] [other settings]",
        "validate": "--config FILE [--ckpt_path CHECKPOINT] [other settings]",
        "predict": "CHECKPOINT IMAGES [--output FOLDER] [--resize PIXELS]",
        "demo": "[--output FOLDER]",
    }
    parsers = {
        name: ArgumentParser(
            exit_on_error=False, description=texts[name], usage=f"densesiam {name} {usages[name]}"
        )
        for name in texts
    }
    for name in ("fit", "validate"):
        _add_training_arguments(parsers[name], name)
    _add_prediction_arguments(parsers["predict"])
    parsers["demo"].add_argument(
        "--output", type=str | None, help="Folder for the results. Default: outputs/demo."
    )
    for name, text in texts.items():
        commands.add_subcommand(name, parsers[name], help=text)
    return parser, parsers


def _add_training_arguments(parser: ArgumentParser, command: str) -> None:
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
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        help='Checkpoint to go on from: "last" in the --output folder, or a path.'
        if command == "fit"
        else 'Checkpoint to score: "best" or "last" in the --output folder, or a path.',
    )
    parser.add_argument("--seed", type=int, default=0, help="All randomness follows from it.")
    parser.add_class_arguments(DenseSiamSegmentation, "model")
    parser.add_class_arguments(SegmentationData, "data", skip={"predict", "seed"})
    parser.add_class_arguments(TrainerOptions, "trainer")


def _add_prediction_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=str, help="The trained model, a .ckpt file.")
    parser.add_argument(
        "images", type=str, help='A folder of images, one image, or "samples" for nine photographs.'
    )
    parser.add_argument(
        "--output", type=str | None, help="Folder for the results. Default: outputs/predictions."
    )
    parser.add_argument(
        "--resize",
        type=int | None,
        help="Shorter side that the network sees, in pixels. Default: as the model was trained.",
    )
    parser.add_argument(
        "--accelerator",
        type=Literal["auto", "cpu", "gpu"],
        default="auto",
        help="What to compute on; auto takes a GPU where there is one.",
    )


def _run_training(command: str, parser: ArgumentParser, config: Namespace) -> None:
    start = None
    if config.ckpt_path is not None:
        start = _resolve_checkpoint(config.ckpt_path, config.output)
        checkpoint = read_checkpoint(start)
        if command == "fit":
            _check_resumable(start, checkpoint, config)
    if command == "fit":
        if config.ckpt_path == "last":
            folder = Path(config.output)
            _check_writable(folder)
        else:
            name = Path(str(config.config[-1])).stem if config.config else "fit"
            folder = claim_folder(config.output, f"outputs/{name}")
        config.output = str(folder)
    text = parser.dump(config.clone(), skip_unset=False)
    if start is not None:
        # The checkpoint has the weights; those that training started from need not be there.
        config.model.weights = None
    L.seed_everything(config.seed, workers=True, verbose=False)
    built = parser.instantiate(config)
    built.data.seed = config.seed
    if command == "fit":
        fit(built.model, built.data, built.trainer, folder, text, start)
    else:
        output = None if config.output is None else Path(config.output)
        validate(built.model, built.data, built.trainer, output, start)


def run(args: Sequence[str] | None = None) -> None:
    """Run the command as `main` does, but raise its errors.

    Args:
        args: the command line after ``densesiam``; that of the process by default.

    Raises:
        UsageError: a mistake on the command line or in a config file.
        Interrupted: Ctrl-C.
    """
    parser, parsers = _parsers()
    try:
        config = parser.parse_args(args)
    except ArgumentError as error:
        raise UsageError(_readable(str(error), parsers)) from error
    command, options = config.command, config[config.command]
    if command in ("fit", "validate"):
        _run_training(command, parsers[command], options)
    elif command == "predict":
        folder = claim_folder(options.output, "outputs/predictions")
        predict(
            Path(options.checkpoint), options.images, folder, options.resize, options.accelerator
        )
    else:
        from densesiam import demo  # it stands on this module

        demo.run(options.output)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command, and say in a line what went wrong, if anything did.

    Args:
        args: the command line after ``densesiam``; that of the process by default.

    Returns:
        0 for success, 1 after an error, 2 after a mistake on the command line or in a config file,
        130 after Ctrl-C. With DENSESIAM_DEBUG=1 in the environment, errors are raised instead,
        with their traceback.
    """
    with _calm():
        try:
            run(args)
        except KeyboardInterrupt as interrupt:
            print(f"\n{interrupt or 'interrupted'}", file=sys.stderr)
            return _INTERRUPTED
        except _EXPECTED as error:
            if os.environ.get("DENSESIAM_DEBUG") == "1":
                raise
            print(f"densesiam: error: {_message(error)}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1
    return 0


@contextmanager
def _calm() -> Iterator[None]:
    """Show what matters: our warnings in one line, and none of Lightning's hints."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    show = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.formatwarning = lambda message, *_, **__: f"densesiam: warning: {message}\n"
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for hint in _NO_CONCERN_OF_THE_USER:
            warnings.filterwarnings("ignore", message=hint)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            warnings.formatwarning = show
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _message(error: BaseException) -> str:
    """The error's own words; those of a loader's process come wrapped in its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = re.sub(r"^[\w.]*(?:Error|Exception): ", "", text.splitlines()[-1])
    return text or type(error).__name__


def _readable(text: str, parsers: dict[str, ArgumentParser]) -> str:
    """Put a parser's complaint into plain words, and guess what a misspelt key was meant to be."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r"Parser key \"(.*?)\":", r"\1:", text)
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    unknown = re.search(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)", text)
    if unknown:
        known = {action.dest for parser in parsers.values() for action in parser._actions}
        # A setting of another command is known, but no correction.
        close = difflib.get_close_matches(unknown[1], known - {unknown[1]}, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"unknown setting {unknown[1]}: {hint}`densesiam COMMAND --help` lists all"
    return text


if __name__ == "__main__":
    sys.exit(main())
