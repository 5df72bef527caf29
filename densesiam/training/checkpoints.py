"""Checkpoints of runs: written, found again, read, and refused where they do not fit."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from densesiam._writing import replacing
from densesiam.methods import METHODS, Method
from densesiam.models.weights import check_finite
from densesiam.training.console import say

_NAMES = ("last", "best")
_WRITTEN_BY = {"segmentation": "`fit`", "pre-training": "`pretrain`"}


def keep_checkpoint(folder: Path, name: str = "last", **criterion: Any) -> ModelCheckpoint:
    """The callback that keeps one checkpoint of a run, written at the end of epochs.

    Args:
        folder: the run's folder.
        name: the file is ``checkpoints/NAME.ckpt``.
        **criterion: what makes a checkpoint worth keeping; by default, being the latest.
    """
    return ModelCheckpoint(
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
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: {expected}")
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

    Args:
        path: the checkpoint.
        checkpoint: its content.
        config: the settings of the run that is to go on.

    Raises:
        ValueError: training is complete, or its schedule was made for another length.
    """
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


class CheckpointConfig(Callback):
    """Put the run's configuration into its checkpoints, so that one file tells all.

    It lies under `KEY` as YAML, a plain string: checkpoints stay readable without running code.

    Args:
        config: the configuration.
    """

    KEY = "densesiam_config"

    def __init__(self, config: str) -> None:
        self.config = config

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration."""
        checkpoint[self.KEY] = self.config
