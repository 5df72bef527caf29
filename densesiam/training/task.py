"""Training with labels, as a run: fine-tuning, and the probes that are trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from densesiam._writing import write_json, write_text
from densesiam.models.weights import explain_mismatch
from densesiam.training.checkpoints import (
    CheckpointConfig,
    keep_checkpoint,
    open_checkpoint,
    read_file,
)
from densesiam.training.console import first_process, interactive, say
from densesiam.training.divergence import Finite
from densesiam.training.folders import check_writable, claim_folder
from densesiam.training.options import TrainerOptions, build_trainer
from densesiam.training.report import ProgressBar, RunReport
from densesiam.training.run import Built, build, interruptible
from densesiam.transfer.base import Supervised, score_table


@dataclass(frozen=True)
class Task:
    """Something to train with labels.

    Attributes:
        command: the command and the task, as they are typed.
        summary: what it does, for its help.
        model: class of the setting ``model``.
        data: class of the setting ``data``.
        of_data: arguments of the model that the data tell.
    """

    command: str
    summary: str
    model: type[Supervised]
    data: type[L.LightningDataModule]
    of_data: Sequence[str] = ("classes",)

    def parser(self) -> ArgumentParser:
        """The parser of the task's arguments."""
        parser = ArgumentParser(
            exit_on_error=False,
            description=self.summary,
            usage=f"densesiam {self.command} --config FILE [--model.weights FILE] [other settings]",
        )
        parser.add_argument(
            "--config",
            action="config",
            help="YAML file of settings, such as those in configs/transfer. May be given several "
            "times; later files and options override earlier ones.",
        )
        parser.add_argument(
            "--output",
            type=str | None,
            help="Folder of the run. Default: outputs/NAME, after the config file.",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help='Checkpoint of such a run to go on from: "last" in the --output folder, or a '
            "path.",
        )
        parser.add_argument(
            "--evaluate", type=bool, default=False, help="Score the checkpoint, and train nothing."
        )
        parser.add_argument("--seed", type=int, default=0, help="All randomness follows from it.")
        parser.add_class_arguments(self.model, "model")
        parser.add_class_arguments(self.data, "data", skip={"seed"})
        unused = {"max_epochs", "picture_every_n_epochs", "monitor_every_n_steps"}
        parser.add_class_arguments(TrainerOptions, "trainer", skip=unused)
        for name in self.of_data:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        return parser

    def run(self, config: Namespace) -> None:
        """Train and score, or score alone, and leave all of the run in one folder.

        The folder gets ``config.yaml``, ``results.json`` with the scores, ``summary.json`` with the
        losses, ``logs/`` (TensorBoard) and ``checkpoints/last.ckpt``, after every epoch.

        Args:
            config: what the task's parser made of the command line.

        Raises:
            Interrupted: Ctrl-C; the last checkpoint is kept.
            ValueError: settings, data or a checkpoint that do not go together.
            OSError: data or a checkpoint that are not there.
        """
        checkpoint = ckpt_path = None
        if config.ckpt_path is not None:
            ckpt_path, checkpoint = open_checkpoint(
                config.ckpt_path, config.output, self._read_checkpoint
            )
            if not config.evaluate:
                _check_unfinished(ckpt_path, checkpoint, config)
        elif config.evaluate:
            raise ValueError("--evaluate true scores a checkpoint: give --ckpt_path too")
        if config.ckpt_path == "last":
            folder = Path(config.output)
            check_writable(folder)
        else:
            named = Path(str(config.config[-1])).stem if config.config else None
            folder = claim_folder(
                config.output, f"outputs/{named or self.command.replace(' ', '-')}"
            )
        config.output = str(folder)
        built = build(self.parser(), config, ckpt_path)
        if checkpoint is not None:
            difference = explain_mismatch(built.model, checkpoint["state_dict"])
            if difference:
                raise ValueError(
                    f"{ckpt_path} was trained with other settings or data:\n{difference}\n"
                    "Give the config.yaml of its run as --config"
                )
        if config.evaluate:
            assert checkpoint is not None
            built.model.load_state_dict(checkpoint["state_dict"])
            self._evaluate(built, folder, checkpoint["global_step"])
        else:
            self._train(built, folder)

    def _train(self, built: Built, folder: Path) -> None:
        model, data = built.model, built.data
        batches = len(data.train_dataloader())  # missing data should stop the run before all else
        report = RunReport(folder / "summary.json")
        callbacks: list[Callback] = [
            Finite(),
            report,
            CheckpointConfig(built.config),
            keep_checkpoint(folder),
        ]
        if interactive():
            callbacks.append(ProgressBar(report))
        trainer = build_trainer(
            built.options,
            callbacks,
            TensorBoardLogger(folder, name="", version="logs", default_hp_metric=False),
            max_epochs=-1,  # the model ends it
            limit_val_batches=1.0 if data.val is not None else 0,
        )
        trainer.fit_loop.max_epochs = _epochs(batches, model.max_steps, built.options, trainer)
        if first_process():
            write_text(folder / "config.yaml", built.config)
        with interruptible(trainer, folder, self.command):
            trainer.fit(model, data, ckpt_path=built.ckpt_path, weights_only=True)
            if data.val is not None and model.scored_at != trainer.global_step:
                trainer.validate(model, data, verbose=False)
        if data.val is not None:
            _report(model, built, folder, trainer.global_step)
        say(f"finished: {folder / 'checkpoints'} has the checkpoint, {folder} all of the run")

    def _evaluate(self, built: Built, folder: Path, step: int) -> None:
        if built.data.val is None:
            raise ValueError("nothing to score: give data.val")
        callbacks: list[Callback] = [ProgressBar(RunReport(Path()))] if interactive() else []
        trainer = build_trainer(built.options, callbacks, logger=False, max_epochs=1)
        with interruptible(trainer):
            trainer.validate(built.model, built.data, verbose=False)
        _report(built.model, built, folder, step)

    def _read_checkpoint(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint of the task, without ever running code from it."""
        expected = f"expected a .ckpt file that `densesiam {self.command}` wrote"
        content: Any = read_file(path, expected)
        if not isinstance(content, dict) or content.get(Supervised.KEY) != self.model.__name__:
            raise ValueError(
                f"{path} is not a checkpoint of this command: {expected}. A pre-trained backbone "
                "to start from belongs in model.weights"
            )
        return content


def _check_unfinished(path: Path, checkpoint: dict[str, Any], config: Namespace) -> None:
    """Refuse to go on where there is nothing to go on, or on another schedule."""
    done, wanted = checkpoint["global_step"], config.model.max_steps
    if done >= wanted:
        raise ValueError(
            f"{path} has trained {done} steps already, and model.max_steps is {wanted}: raise it "
            "to train on, or score it with --evaluate true"
        )


def _epochs(batches: int, steps: int, options: TrainerOptions, trainer: L.Trainer) -> int:
    """How many epochs hold so many steps; never too few, since the model ends the training.

    Args:
        batches: of an epoch on a single process.
        steps: of the optimiser.
        options: how to train.
        trainer: knows the number of processes.
    """
    batches = min(batches // trainer.world_size, options.limit_train_batches or batches)
    return math.ceil(steps / max(1, batches // options.accumulate_grad_batches))


def _report(model: Supervised, built: Built, folder: Path, step: int) -> None:
    """Print the scores and write them."""
    say(score_table(model.scores))
    if first_process():
        write_text(folder / "config.yaml", built.config)
        content: dict[str, Any] = {"step": step, "scores": model.scores}
        write_json(folder / "results.json", content)
        say(f"wrote {folder / 'results.json'}")


def add_tasks(parser: ArgumentParser, parsers: dict[str, tuple[str, ArgumentParser]]) -> None:
    """Give a command tasks to choose from.

    Args:
        parser: of the command.
        parsers: for each task its summary and its parser.
    """
    tasks = parser.add_subcommands(dest="task", required=True)
    for name, (summary, task) in parsers.items():
        tasks.add_subcommand(name, task, help=summary)
