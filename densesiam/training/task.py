"""Training with labels, as a run: fine-tuning, and the probes that are trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback

from densesiam._writing import write_json, write_text
from densesiam.data.modules.supervised import SupervisedData
from densesiam.training.checkpoints import TrainedAlready, open_checkpoint, read_file
from densesiam.training.console import first_process, interactive, say
from densesiam.training.folders import claim_folder
from densesiam.training.launch import join
from densesiam.training.options import TrainerOptions, build_trainer, probe
from densesiam.training.report import ProgressBar, RunReport, note_killed
from densesiam.training.run import (
    RESUME_HELP,
    Run,
    add_change_argument,
    build,
    check_fits,
    default_folder,
    find_start,
    interruptible,
    prepared,
    training_run,
)
from densesiam.transfer.base import Supervised, score_table

RESULTS = "results.json"


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
    data: type[SupervisedData]
    of_data: Sequence[str] = ("classes",)

    def parser(self) -> ArgumentParser:
        """The parser of the task's arguments."""
        parser = ArgumentParser(
            exit_on_error=False,
            allow_abbrev=False,
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
            help="Folder of the run. Default: outputs/COMMAND/NAME, NAME being that of the config "
            "file.",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help=RESUME_HELP,
        )
        add_change_argument(parser)
        parser.add_argument(
            "--evaluate", type=bool, default=False, help="Score the checkpoint, and train nothing."
        )
        parser.add_argument("--seed", type=int, default=0, help="All randomness follows from it.")
        parser.add_class_arguments(self.model, "model")
        parser.add_class_arguments(self.data, "data")
        parser.link_arguments("seed", "data.seed")
        unused = {"max_epochs", "picture_every_n_epochs", "monitor_every_n_steps"}
        parser.add_class_arguments(TrainerOptions, "trainer", skip=unused)
        for name in self.of_data:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        return parser

    def run(self, config: Namespace) -> None:
        """Train and score, or score alone, and leave all of the run in one folder.

        The folder gets ``config.yaml``, ``results.json`` with the scores, ``summary.json`` with the
        losses, ``logs/`` (TensorBoard) and ``checkpoints/``, as of `training_run`. With "auto", a
        run that is trained and has no scores, as it was stopped between the two, is scored.

        Args:
            config: what the task's parser made of the command line.

        Raises:
            Interrupted: a signal; the last checkpoint is kept.
            ValueError: settings, data or a checkpoint that do not go together.
            OSError: data or a checkpoint that are not there.
        """
        join(probe(TrainerOptions(**vars(config.trainer))))
        default = default_folder(config, self.command)
        if config.evaluate:
            self._evaluate(config, default)
            return
        start = find_start(config, default, self._read_checkpoint, _check_unfinished)
        if start is not None:
            with prepared(self.command, self.parser(), config, start) as run:
                self._train(run)
        elif config.data.val is not None and not Path(config.output or default, RESULTS).exists():
            # Stopped between training and scoring.
            config.output, config.ckpt_path = config.output or default, "last"
            self._evaluate(config, default)

    def _train(self, run: Run) -> None:
        built = run.built
        model, data = built.model, built.data
        with training_run(
            run,
            max_epochs=-1,  # the model ends it
            limit_val_batches=1.0 if data.val is not None else 0,
        ) as trainer:
            batches = data.num_batches(trainer.world_size)
            trainer.fit_loop.max_epochs = _epochs(batches, model.max_steps, built.options)
            trainer.fit(model, data, ckpt_path=built.ckpt_path, weights_only=True)
            if data.val is not None:
                if model.scored_at != trainer.global_step:
                    trainer.validate(model, data, verbose=False)
                _report(model, run.folder, trainer.global_step)

    def _evaluate(self, config: Namespace, default: str) -> None:
        if config.ckpt_path is None:
            raise ValueError("--evaluate true scores a checkpoint: give --ckpt_path too")
        if config.output is not None:
            note_killed(Path(config.output))
        ckpt_path, checkpoint = open_checkpoint(
            config.ckpt_path, config.output, self._read_checkpoint
        )
        # The scores of the run's own last checkpoint lie in its folder.
        last = config.ckpt_path == "last"
        folder = Path(config.output) if last else claim_folder(config.output, default)
        config.output = str(folder)
        built = build(self.parser(), config, ckpt_path)
        check_fits(built.model, ckpt_path, checkpoint)
        built.model.load_state_dict(checkpoint["state_dict"])
        if built.data.val is None:
            raise ValueError("nothing to score: give data.val")
        callbacks: list[Callback] = [ProgressBar(RunReport(Path()))] if interactive() else []
        trainer = build_trainer(built.options, callbacks, logger=False, max_epochs=1)
        with interruptible(trainer):
            trainer.validate(built.model, built.data, verbose=False)
        if not last and first_process():
            write_text(folder / "config.yaml", built.config)
        _report(built.model, folder, checkpoint["global_step"])

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
        raise TrainedAlready(
            f"{path} has trained {done} steps already, and model.max_steps is {wanted}: raise it "
            "to train on, or score it with --evaluate true"
        )


def _epochs(batches: int, steps: int, options: TrainerOptions) -> int:
    """How many epochs of so many batches hold so many steps of the optimiser."""
    batches = min(batches, options.limit_train_batches or batches)
    return math.ceil(steps / max(1, batches // options.accumulate_grad_batches))


def _report(model: Supervised, folder: Path, step: int) -> None:
    """Print the scores and write them."""
    say(score_table(model.scores))
    if first_process():
        content: dict[str, Any] = {"step": step, "scores": model.scores}
        write_json(folder / RESULTS, content)
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
