"""A training run: built from a config file, with its folder, its files, its end and signals."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback
from torch import nn

from densesiam._writing import write_text
from densesiam.data.modules.loading import ScoringModule
from densesiam.data.views.paired import output_size
from densesiam.methods import Method
from densesiam.models.weights import explain_mismatch
from densesiam.training.checkpoints import (
    CheckpointConfig,
    RandomState,
    TrainedAlready,
    check_images,
    check_processes,
    check_resumable,
    check_settings,
    describe_images,
    keep_checkpoint,
    open_checkpoint,
    read_checkpoint,
)
from densesiam.training.console import Interrupted, first_process, interactive, say
from densesiam.training.divergence import Finite
from densesiam.training.folders import Claim, choose_folder, held, holds_no_run
from densesiam.training.interrupts import Signals, StopAndSave
from densesiam.training.launch import join
from densesiam.training.logs import RunLogs
from densesiam.training.monitor import CollapseMonitor, Kind
from densesiam.training.options import (
    TrainerOptions,
    build_trainer,
    can_synchronise,
    probe,
    synchronised,
)
from densesiam.training.precision import describe, settled
from densesiam.training.report import (
    SUMMARY,
    ProgressBar,
    ProgressLines,
    RunReport,
    note_finished,
    note_killed,
)
from densesiam.training.unreadable import UnreadableImages
from densesiam.training.workers import explained

RESUME_HELP = (
    'Checkpoint to go on from: "auto" goes on with the run in the --output folder, or begins it; '
    '"last" in that folder; or a path.'
)


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
        help="Folder of the run. Default: outputs/NAME for fit, outputs/COMMAND/NAME for others, "
        "NAME being that of the config file.",
    )
    parser.add_argument("--ckpt_path", type=str | None, help=checkpoint_help)
    parser.add_argument("--seed", type=int, default=0, help="All randomness follows from it.")
    parser.add_class_arguments(model, "model")
    parser.add_class_arguments(data, "data", skip={"predict"})
    parser.link_arguments("seed", "data.seed")
    parser.add_class_arguments(TrainerOptions, "trainer", skip=set(unused))


def add_change_argument(parser: ArgumentParser) -> None:
    """Add the switch of commands that go on with runs."""
    parser.add_argument(
        "--change_settings",
        type=bool,
        default=False,
        help="Go on from a checkpoint even where settings or training images, and so the losses, "
        "are others than its own.",
    )


@dataclass(frozen=True)
class Built:
    """What a config file describes, made.

    Attributes:
        model: the model.
        data: the data module.
        options: how to train.
        config: the whole configuration, as YAML, with the precision that "auto" has come to.
        ckpt_path: the checkpoint to start from, if one was given.
    """

    model: Any
    data: Any
    options: TrainerOptions
    config: str
    ckpt_path: Path | None


def build(
    parser: ArgumentParser,
    config: Namespace,
    ckpt_path: Path | None = None,
    goes_on: Mapping[str, Any] | None = None,
) -> Built:
    """Make the model and the data.

    Args:
        parser: of the command.
        config: its settings.
        ckpt_path: a checkpoint that will fill the model; weights that training started from then
            need not be there.
        goes_on: content of a checkpoint whose run goes on.
    """
    kept = config.clone()
    kept.pop("change_settings", None)  # said for this once
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
    options = settled(built.trainer, built.model, goes_on)
    kept.trainer.precision = options.precision
    text = parser.dump(kept, skip_unset=False)
    return Built(built.model, built.data, options, text, ckpt_path)


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        folder: the run's; nothing has been written yet.
        ckpt_path: the checkpoint to go on from; None for a new run.
        checkpoint: its content.
    """

    folder: Path
    ckpt_path: Path | None = None
    checkpoint: Mapping[str, Any] | None = None


def find_start(
    config: Namespace,
    default: str,
    read: Callable[[Path], dict[str, Any]],
    check: Callable[[Path, dict[str, Any], Namespace], None],
) -> Start | None:
    """Find out where a run begins, and write nothing yet but what `note_killed` does.

    Args:
        config: the command's settings. ``ckpt_path`` may be "auto": the run in ``output`` goes on
            where it has a checkpoint, and begins where it has none.
        default: the folder of a run without ``output``.
        read: reads a checkpoint, or raises.
        check: raises `TrainedAlready` for one that is complete, ValueError for one that does not
            do.

    Returns:
        The start; None where "auto" finds a run that is complete.

    Raises:
        ValueError: a checkpoint that does not do; or the config file is of a run elsewhere.
        OSError: one that is not there; or a folder that holds something else.
    """
    auto = config.ckpt_path == "auto"
    folder = Path(config.output or default)
    if auto or config.ckpt_path == "last":
        _check_home(config, folder)
    note_killed(folder, wait=auto)
    if config.ckpt_path is None:
        return Start(choose_folder(config.output, default, of_training=True))
    try:
        path, checkpoint = open_checkpoint(
            "last" if auto else config.ckpt_path, str(folder) if auto else config.output, read
        )
    except FileNotFoundError:
        if not auto:
            raise
        if not holds_no_run(folder):
            raise FileExistsError(
                f"{folder} holds something else than a run: give another --output"
            ) from None
        return Start(folder)
    try:
        check(path, checkpoint, config)
    except TrainedAlready as complete:
        if not auto:
            raise
        say(f"finished already: {complete}")
        note_finished(folder)
        return None
    if not auto and config.ckpt_path != "last":
        folder = choose_folder(config.output, default, of_training=True)
    return Start(folder, path, checkpoint)


def _check_home(config: Namespace, folder: Path) -> None:
    """Refuse to go on elsewhere than where the run lies whose settings are taken.

    A run's config.yaml names its folder, and still does where that was moved or copied.

    Raises:
        ValueError: the config file lies in a run's folder, and names another.
    """
    if not config.config:
        return
    file = Path(str(config.config[-1]))
    home = file.parent
    if not (home / "checkpoints").is_dir() or home.resolve() == folder.resolve():
        return
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if content.get("output") == config.output:
        raise ValueError(
            f"{file} lies in a run's folder, but names {folder} as its own: give --output {home} "
            "if the run was moved or copied, or another --output for another run"
        )


@dataclass(frozen=True)
class Run:
    """A training run, about to begin in a folder that is held for it.

    Attributes:
        command: that goes on with such a run.
        built: what to train.
        start: where it begins.
        claim: on the folder.
        signals: that may end it.
        changes: whether it may go on with other settings or images.
    """

    command: str
    built: Built
    start: Start
    claim: Claim
    signals: Signals
    changes: bool = False

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.start.folder


@contextmanager
def prepared(
    command: str, parser: ArgumentParser, config: Namespace, start: Start
) -> Iterator[Run]:
    """Hold a run's folder, and make what is to be trained.

    Args:
        command: that goes on with such a run.
        parser: of the command.
        config: its settings.
        start: where the run begins.

    Yields:
        The run. Where the block fails before the training's first step, the folder is left as it
        was found.

    Raises:
        ValueError: settings or a checkpoint that do not go together; another process is at work in
            the folder.
        OSError: a folder that cannot be written.
    """
    config.output = str(start.folder)
    signals = Signals()
    with held(start.folder) as claim, signals.handled():
        built = build(parser, config, start.ckpt_path, start.checkpoint)
        if start.checkpoint is not None:
            assert start.ckpt_path is not None
            check_fits(built.model, start.ckpt_path, start.checkpoint)
            check_settings(start.ckpt_path, start.checkpoint, built.config, config.change_settings)
        yield Run(command, built, start, claim, signals, config.change_settings)


def check_fits(model: nn.Module, path: Path | None, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of a model that was built otherwise.

    Args:
        model: what it is for.
        path: of the checkpoint.
        checkpoint: its content.

    Raises:
        ValueError: the message says which parts differ.
    """
    if difference := explain_mismatch(model, checkpoint["state_dict"]):
        raise ValueError(
            f"{path} was trained with other settings or data, and does not fit this "
            f"{type(model).__name__}:\n{difference}\nGive the config.yaml of its run as --config"
        )


@contextmanager
def method_run(
    command: str, parser: ArgumentParser, config: Namespace, kind: str = "segmentation"
) -> Iterator[Run | None]:
    """`prepared`, for a method: a run of `fit`, `picie` or `pretrain`.

    Args:
        command: its name, for the folder of a run without a config file too.
        parser: of the command.
        config: its settings.
        kind: what its method is for, see `Method`.

    Yields:
        The run; None where it is complete already.
    """
    join(probe(TrainerOptions(**vars(config.trainer))))
    start = find_start(
        config,
        default_folder(config, command),
        lambda path: read_checkpoint(path, kind),
        check_resumable,
    )
    if start is None:
        yield None
        return
    with prepared(command, parser, config, start) as run:
        yield run


def default_folder(config: Namespace, command: str) -> str:
    """The folder of a run without ``--output``: named after its command and its config file.

    So no command's run lies where another's would: several have a folder.yaml. `fit` is not named.
    """
    command = command.replace(" ", "-")
    named = Path(str(config.config[-1])).stem if config.config else command
    return f"outputs/{named}" if command in ("fit", named) else f"outputs/{command}/{named}"


@contextmanager
def training_run(
    run: Run, callbacks: Sequence[Callback] = (), **trainer: Any
) -> Iterator[L.Trainer]:
    """All of a training run but the training: its trainer, its files, its end.

    The folder gets ``config.yaml``, ``summary.json``, ``logs/`` (TensorBoard), and
    ``checkpoints/last.ckpt``, at the end of epochs, every so many minutes, and when a signal comes.

    Args:
        run: what to train, and where.
        callbacks: more than every run has.
        **trainer: more settings of the trainer.

    Yields:
        The trainer.

    Raises:
        Interrupted: a signal in the block; the last checkpoint is kept.
        ValueError: a batch of one image, data that there are not, or labels of other sizes than
            their images'; nothing is written then.
        OSError: images that are not there.
    """
    built, folder = run.built, run.folder
    # Missing images should stop the run before it leaves any trace.
    built.data.num_batches()
    if isinstance(built.data, ScoringModule):
        built.data.check()
    images = describe_images(built.data.trained_on.paths)
    unreadable = UnreadableImages(built.data)
    report = RunReport(folder / SUMMARY, unreadable)
    last = keep_checkpoint(folder)
    path = folder / "checkpoints" / "last.ckpt"

    def begin() -> None:
        """Write the settings: nothing can refuse the run any more."""
        if first_process():
            write_text(folder / "config.yaml", built.config)
        run.claim.begin()

    together: list[Callback] = [
        Finite(),
        unreadable,
        report,
        *([_monitor(built)] if isinstance(built.model, Method) else []),
        *callbacks,
        StopAndSave(run.signals, path, built.options.checkpoint_every_n_minutes, begin),
        RandomState(),
        CheckpointConfig(built.config, images),
        last,
    ]
    together.append(ProgressBar(report) if interactive() else ProgressLines(report))
    # What was logged after the checkpoint will be logged again.
    done = run.start.checkpoint["global_step"] if run.start.checkpoint else 0
    logger = RunLogs(folder, name="", version="logs", default_hp_metric=False, purge_step=done)
    runner = build_trainer(built.options, together, logger, **trainer)
    if (start := run.start).checkpoint is not None:
        assert start.ckpt_path is not None
        check_images(start.ckpt_path, start.checkpoint, images, run.changes)
        check_processes(start.ckpt_path, start.checkpoint, runner.world_size, run.changes)
    _check_normalisation(built, runner)
    if isinstance(built.model, Method):
        _check_batch(built, runner)
        if (size := getattr(built.data.views, "size", None)) is not None:
            built.model.encoder.check_size(*output_size(size))
    for module in built.model.modules():
        if (loaded := getattr(module, "weights_report", None)) is not None:
            say(f"weights: {loaded}")
    say(describe(built.options))
    with interruptible(runner, run.signals, lambda: _what_is_left(run, path)):
        yield runner
    say(f"finished: {folder / 'checkpoints'} has the checkpoints, {folder} all of the run")


def _monitor(built: Built) -> CollapseMonitor:
    """The collapse monitor; only where categories are learned, z are their logits."""
    kind: Kind = "cross_entropy" if built.model.kind == "segmentation" else "cosine"
    return CollapseMonitor(kind=kind, every_n_steps=built.options.monitor_every_n_steps)


def _check_normalisation(built: Built, trainer: L.Trainer) -> None:
    """Refuse to normalise over several processes where torch cannot, or tell what is done."""
    if trainer.world_size == 1 or can_synchronise(built.options):
        return
    if synchronised(built.options):
        raise ValueError(
            f"trainer.sync_batchnorm is true: over {trainer.world_size} processes torch normalises "
            "on GPUs only. Set it to auto or false, and each process normalises over its own "
            f"{built.data.batch_size} images"
        )
    say(
        f"batch normalisation: each of {trainer.world_size} processes normalises over its own "
        f"{built.data.batch_size} images"
    )


def _check_batch(built: Built, trainer: L.Trainer) -> None:
    """Refuse batches of one image, whose normalisation would hide a wrong result."""
    together = built.data.batch_size * (trainer.world_size if synchronised(built.options) else 1)
    if together < 2:
        raise ValueError(
            "data.batch_size is 1: batch normalisation needs at least 2 images, since over one "
            "alone it makes all look alike; raise data.batch_size (and data.samples_per_epoch "
            "where there are few images)"
        )


@contextmanager
def interruptible(
    trainer: L.Trainer,
    signals: Signals | None = None,
    what_is_left: Callable[[], str] = lambda: "interrupted",
) -> Iterator[None]:
    """Turn Lightning's own answer to a signal, an exit with code 1, into `Interrupted`.

    What happens to processes that load data is told too.

    Args:
        trainer: whose work the block is.
        signals: that may end it.
        what_is_left: what to tell then.
    """
    signals = signals or Signals()
    with signals.handled():
        try:
            with explained():
                yield
        except SystemExit:
            if not trainer.interrupted:
                raise
            raise Interrupted(signals.received, what_is_left()) from None


def _what_is_left(run: Run, last: Path) -> str:
    name = run.signals.received.name if run.signals.received else "Ctrl-C"
    if not last.exists():
        return f"interrupted by {name} before the first step ended: {run.folder} has no checkpoint"
    return (
        f"interrupted by {name}; {last} holds all but what came after it. To go on: "
        f"densesiam {run.command} --config {run.folder / 'config.yaml'} --ckpt_path auto"
    )
