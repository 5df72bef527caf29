"""Checkpoints of runs: written, found again, read, and refused where they do not fit."""

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from densesiam._reading import check_is_file
from densesiam._writing import replacing
from densesiam.methods import METHODS, Method
from densesiam.models.weights import check_finite
from densesiam.training.console import say


class TrainedAlready(ValueError):  # noqa: N818 # nothing went wrong
    """A checkpoint of a training that is complete."""


# Settings of where a run is and what it shows, not of what it computes.
_OF_NO_MATTER = {
    "output",
    "ckpt_path",
    "model.weights",
    "change_settings",
    "evaluate",
    "matching",
    "head",
    "legacy",
    "data.num_workers",
    "data.errors",
    "data.max_unreadable",
    "data.worker_timeout",
    "trainer.log_every_n_steps",
    "trainer.monitor_every_n_steps",
    "trainer.picture_every_n_epochs",
    "trainer.validate_every_n_epochs",
    "trainer.checkpoint_every_n_minutes",
}
# What differs here decides on scores, or is told when the length is checked; not on the losses.
_NOT_DECISIVE = ("trainer.max_epochs", "model.max_steps", "data.val", "data.predict")
_COUNTED = ("trainer.devices", "trainer.num_nodes")
_NORMALISED = "trainer.sync_batchnorm"
_HOW_TO_CHANGE = "Give it the same again, or --change_settings true to go on nevertheless"
_NAMES = ("last", "best")
_WRITTEN_BY = {"segmentation": "`fit` or `picie`", "pre-training": "`pretrain`"}


class _KeptCheckpoint(ModelCheckpoint):
    """Lightning's, whose best score goes along with a run's folder that was moved or copied."""

    @property
    def state_key(self) -> str:
        """Where checkpoints have its state: under its parent's name, as earlier ones do."""
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was best, where its file has come along; Lightning asks for its path."""
        assert self.dirpath is not None
        folder = Path(self.dirpath)

        def moved(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        best = state_dict.get("best_model_path", "")
        if best and not Path(moved(best)).is_file():
            return
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        state = {**state_dict, "dirpath": self.dirpath}
        state |= {name: moved(state[name]) for name in paths if name in state}
        state["best_k_models"] = {
            moved(path): score for path, score in state.get("best_k_models", {}).items()
        }
        super().load_state_dict(state)


def keep_checkpoint(folder: Path, name: str = "last", **criterion: Any) -> ModelCheckpoint:
    """The callback that keeps one checkpoint of a run, written at the end of epochs.

    Args:
        folder: the run's folder.
        name: the file is ``checkpoints/NAME.ckpt``.
        **criterion: what makes a checkpoint worth keeping; by default, being the latest.
    """
    return _KeptCheckpoint(
        folder / "checkpoints",
        filename=name,
        save_on_train_epoch_end=True,  # with the epoch complete, so that training goes on from it
        enable_version_counter=False,
        **criterion,
    )


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints that are whole at every moment, and keep the one before.

    Each is written beside its target, flushed to the disk, and given the target's name. The file
    that had the name before becomes `previous_checkpoint`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; the message names the file, and what is left.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, previous_checkpoint(path)) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            reason = str(error).strip().splitlines()[0].removeprefix(f"cannot write {path}: ")
            left = "the last good one is kept" if path.exists() else "there is none before it"
            raise OSError(f"cannot write checkpoint {path}: {reason}; {left}") from error


def previous_checkpoint(path: Path) -> Path:
    """Where the checkpoint lies that another took the place of."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def open_checkpoint(
    name: str, output: str | None, read: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """Read what ``--ckpt_path`` means; of a run, the checkpoint before where the last is damaged.

    Args:
        name: "last" or "best", of the run in `output`; or a path, which is read or refused.
        output: the run's folder.
        read: reads a file, or raises.

    Returns:
        The file, and its content.

    Raises:
        ValueError: a name without a run; or what `read` raises.
        FileNotFoundError: there is no such file.
    """
    path = resolve_checkpoint(name, output)
    try:
        return path, read(path)
    except (ValueError, FileNotFoundError) as error:
        before = previous_checkpoint(path)
        if name not in _NAMES or not before.is_file():
            raise
        content = read(before)
        say(f"{error}\nThe checkpoint before it is taken: {before}")
        return before, content


def resolve_checkpoint(name: str, output: str | None) -> Path:
    """The file that ``--ckpt_path`` means.

    Args:
        name: "last" or "best", of the run in `output`; or a path.
        output: the run's folder.

    Raises:
        ValueError: a name without a run.
    """
    if name not in _NAMES:
        return Path(name)
    if output is None:
        raise ValueError(f"--ckpt_path {name} needs --output, the folder of the run")
    return Path(output, "checkpoints", f"{name}.ckpt")


def read_file(path: Path, expected: str) -> Any:
    """Read a checkpoint file, without ever running code from it, and verify its checksums.

    Args:
        path: the file.
        expected: what it should have been, for messages.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is damaged, or holds weights that are not finite.
    """
    check_is_file(path, "checkpoint", expected)
    try:
        # torch.load reads past the archive's checksums: flipped bits would become other weights.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content: Any = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles and archives fail in every way
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {expected}") from error
    if damaged:
        raise ValueError(
            f"{path} is damaged, the checksum of {damaged} is wrong: {expected}, or a copy of it"
        )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        check_finite(content["state_dict"], str(path))
    return content


def read_checkpoint(path: Path, kind: str | None = "segmentation") -> dict[str, Any]:
    """Read a checkpoint of a training, without ever running code from it.

    Args:
        path: the file.
        kind: what its method must be for, see `Method`; None takes all.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of such a method; see also `read_file`.
    """
    writers = _WRITTEN_BY[kind] if kind else " or ".join(_WRITTEN_BY.values())
    expected = f"expected a .ckpt file that {writers} wrote"
    content = read_file(path, expected)
    method = METHODS.get(content.get(Method.KEY, "")) if isinstance(content, dict) else None
    if method is None or kind not in (None, method.kind):
        is_of = f", but a {method.kind} model's" if method else ""
        raise ValueError(
            f"{path} is not a {f'{kind} ' if kind else ''}model's checkpoint{is_of}: {expected}; "
            "weights of a backbone alone belong in model.weights"
        )
    return content


def check_resumable(path: Path, checkpoint: dict[str, Any], config: Namespace) -> None:
    """Refuse to go on from where there is nothing to go on.

    A training can be made longer, whatever its schedule: each step's rate, and RegionSim's start,
    are those of the new length.

    Args:
        path: the checkpoint.
        checkpoint: its content.
        config: the settings of the run that is to go on.

    Raises:
        TrainedAlready: training is complete.
        ValueError: the file holds weights alone.
    """
    if not checkpoint.get("optimizer_states"):
        raise ValueError(
            f"{path} holds no state of the optimiser, so training cannot go on from it"
        )
    done, wanted = whole_epochs(checkpoint), config.trainer.max_epochs
    if done >= wanted:
        raise TrainedAlready(
            f"{path} has trained {done} epochs already, and trainer.max_epochs is {wanted}: "
            "raise it to train on"
        )
    before = yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}")).get("trainer", {})
    if (planned := before.get("max_epochs", wanted)) != wanted:
        say(
            f"trained for {wanted} epochs instead of {planned}: the learning rate's schedule, and "
            "RegionSim's start where it is a share, are those of the new length from here on"
        )


def whole_epochs(checkpoint: Mapping[str, Any]) -> int:
    """Epochs that a checkpoint's training has been through; one from within an epoch lacks that."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    if "epoch_progress" in loop:
        return int(loop["epoch_progress"]["current"]["processed"])
    return int(checkpoint["epoch"]) + 1


def check_settings(
    path: Path, checkpoint: Mapping[str, Any], config: str, changes: bool = False
) -> None:
    """Tell which settings a checkpoint was trained with that are others now.

    A setting that one of them lacks is from another version, and no difference.

    Args:
        path: the checkpoint.
        checkpoint: its content.
        config: the settings as YAML.
        changes: whether settings may differ that decide on the losses.

    Raises:
        ValueError: they may not.
    """
    before = _flat(yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}")))
    now = _flat(yaml.safe_load(config))
    # null on one side may stand for all of a part on the other.
    for one, other in ((before, now), (now, before)):
        for name in one.keys() - other.keys():
            if any(each.startswith(f"{name}.") for each in other):
                other[name] = "set"
    # What these come to is in newer checkpoints, and `check_processes` compares that.
    counted = _COUNTED if CheckpointConfig.PROCESSES in checkpoint else ()
    different = {
        name: f"  {name}: {before[name]} -> {now[name]}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name] and name not in {*_OF_NO_MATTER, *counted}
    }
    if {before.get(_NORMALISED), now.get(_NORMALISED)} == {True, "auto"}:
        del different[_NORMALISED]  # what was the default, and what is
    decisive = [
        line
        for name, line in different.items()
        if not name.startswith(_NOT_DECISIVE) and not _is_path(name, before[name], now[name])
    ]
    if decisive and not changes:
        raise ValueError(
            f"other settings than {path} was trained with would give other losses than those of a "
            "run that was not stopped:\n" + "\n".join(decisive) + f"\n{_HOW_TO_CHANGE}"
        )
    if different:
        say(f"settings that {path} was trained with, and what they are now:")
        say("\n".join(different.values()))
    if decisive:
        say("the losses will not be those of a run that was not stopped")


def _is_path(name: str, *values: Any) -> bool:
    """Whether a setting says where the training images are; `check_images` knows which they are."""
    key = name.rpartition(".")[2]
    return name.startswith("data.train") and key != "class_path" and all(map(_is_text, values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def check_images(
    path: Path, checkpoint: Mapping[str, Any], images: str, changes: bool = False
) -> None:
    """Refuse to go on with other training images.

    Args:
        path: the checkpoint.
        checkpoint: its content.
        images: what `describe_images` says of the training images.
        changes: whether they may be others.

    Raises:
        ValueError: they may not.
    """
    before = checkpoint.get(CheckpointConfig.IMAGES, images)  # earlier versions have none
    if before != images:
        _differ(f"{path} was trained on other images: {before}, and now {images}", changes)


def check_processes(
    path: Path, checkpoint: Mapping[str, Any], processes: int, changes: bool = False
) -> None:
    """Refuse to go on with more or fewer processes, and so with other batches.

    Args:
        path: the checkpoint.
        checkpoint: its content.
        processes: that train together now.
        changes: whether they may be others.

    Raises:
        ValueError: they may not.
    """
    before = checkpoint.get(CheckpointConfig.PROCESSES, processes)  # earlier versions have none
    if before != processes:
        _differ(
            f"{path} was trained by {before} process(es), and now {processes} would train "
            "together, each with data.batch_size images a step: see trainer.devices and "
            "trainer.num_nodes",
            changes,
        )


def _differ(difference: str, changes: bool) -> None:
    """Tell what decides on the losses and is not as it was.

    Raises:
        ValueError: it must be.
    """
    if not changes:
        raise ValueError(f"{difference}\n{_HOW_TO_CHANGE}")
    say(f"{difference}; the losses will not be those of a run that was not stopped")


def describe_images(paths: Sequence[Path]) -> str:
    """How many images there are, and a number that follows from their names and order."""
    names = "\0".join(path.name for path in paths)
    return f"{len(paths)} images, names {zlib.crc32(names.encode(errors='surrogateescape')):08x}"


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under names with dots; lists are values."""
    if not isinstance(settings, dict):
        return {prefix.rstrip("."): settings}
    return {
        name: value
        for key, entry in settings.items()
        for name, value in _flat(entry, f"{prefix}{key}.").items()
    }


class RandomState(Callback):
    """Let a training that goes on draw the random numbers that it would have drawn.

    The views' draws follow from seed, epoch and image alone. These are torch's own, for methods
    that draw in a step: dropout, a detector's choice of proposals.
    """

    KEY = "densesiam_random"

    def __init__(self) -> None:
        self._state: dict[str, Tensor] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the generators' states."""
        state = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        checkpoint[self.KEY] = state

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember them until all that comes before the first step has drawn."""
        self._state = checkpoint.get(self.KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take them over."""
        if self._state is None:
            return
        torch.set_rng_state(self._state["cpu"].cpu())
        if "cuda" in self._state and pl_module.device.type == "cuda":
            torch.cuda.set_rng_state(self._state["cuda"].cpu(), pl_module.device)
        self._state = None


class CheckpointConfig(Callback):
    """Put the run's configuration into its checkpoints, so that one file tells all.

    It lies under `KEY` as YAML, a plain string: checkpoints stay readable without running code.

    Args:
        config: the configuration.
        images: what `describe_images` says of the training images; it lies under `IMAGES`.

    Under `PROCESSES` lies how many trained together, which ``devices: auto`` does not say.
    """

    KEY = "densesiam_config"
    IMAGES = "densesiam_images"
    PROCESSES = "densesiam_processes"

    def __init__(self, config: str, images: str) -> None:
        self.config = config
        self.images = images

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration."""
        checkpoint[self.KEY] = self.config
        checkpoint[self.IMAGES] = self.images
        checkpoint[self.PROCESSES] = trainer.world_size
