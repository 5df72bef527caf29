"""What the commands that build a model and its data from a config file share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser, Namespace

from densesiam.commands.checkpoints import check_resumable, read_checkpoint, resolve_checkpoint
from densesiam.commands.folders import check_writable, claim_folder
from densesiam.commands.trainer import TrainerOptions


def add_config_arguments(
    parser: ArgumentParser, model: type, data: type, checkpoint_help: str
) -> None:
    """Add the arguments of a command that a config file describes.

    Args:
        parser: of the command.
        model: class of the setting ``model``.
        data: class of the setting ``data``.
        checkpoint_help: what ``--ckpt_path`` is for.
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
    parser.add_class_arguments(TrainerOptions, "trainer")


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
    built = parser.instantiate(config)
    built.data.seed = config.seed
    return Built(built.model, built.data, built.trainer, text, ckpt_path)


def start_run(parser: ArgumentParser, config: Namespace, command: str) -> tuple[Built, Path]:
    """Make the model, the data and the folder of a training run, new or gone on with.

    Args:
        parser: of the command.
        config: its settings.
        command: its name, for the folder of a run without a config file.

    Raises:
        ValueError: settings or a checkpoint that do not go together.
        OSError: a folder or a checkpoint that is not there, or cannot be written.
    """
    ckpt_path = None
    if config.ckpt_path is not None:
        ckpt_path = resolve_checkpoint(config.ckpt_path, config.output)
        check_resumable(ckpt_path, read_checkpoint(ckpt_path), config)
    if config.ckpt_path == "last":
        folder = Path(config.output)
        check_writable(folder)
    else:
        name = Path(str(config.config[-1])).stem if config.config else command
        folder = claim_folder(config.output, f"outputs/{name}")
    config.output = str(folder)
    return build(parser, config, ckpt_path), folder
