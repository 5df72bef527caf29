"""``densesiam pretrain``: train a backbone on unlabelled images, to be used elsewhere."""

from jsonargparse import ArgumentParser, Namespace

from densesiam.data.modules.two_views import PretrainingData
from densesiam.methods import DenseSiamPretraining
from densesiam.training.run import (
    RESUME_HELP,
    add_change_argument,
    add_config_arguments,
    method_run,
    training_run,
)

USAGE = "--config FILE [--data.train FOLDER] [--output FOLDER] [other settings]"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config_arguments(
        parser,
        DenseSiamPretraining,
        PretrainingData,
        RESUME_HELP,
        unused=("validate_every_n_epochs", "picture_every_n_epochs"),
    )
    add_change_argument(parser)


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command; see `training_run` for the files that it leaves."""
    with method_run("pretrain", parser, config, DenseSiamPretraining.kind) as run:
        if run is None:
            return
        with training_run(run) as trainer:
            built = run.built
            trainer.fit(built.model, built.data, ckpt_path=built.ckpt_path, weights_only=True)
