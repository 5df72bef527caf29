"""``densesiam pretrain``: train a backbone on unlabelled images, to be used elsewhere."""

from jsonargparse import ArgumentParser, Namespace

from densesiam.data.modules.two_views import PretrainingData
from densesiam.methods import DenseSiamPretraining
from densesiam.training.run import add_config_arguments, start_run, training_run

SUMMARY = "Pre-train a backbone on a folder of images."
USAGE = "--config FILE [--data.train FOLDER] [--output FOLDER] [other settings]"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config_arguments(
        parser,
        DenseSiamPretraining,
        PretrainingData,
        'Checkpoint to go on from: "last" in the --output folder, or a path.',
        unused=("validate_every_n_epochs", "picture_every_n_epochs"),
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command; see `training_run` for the files that it leaves."""
    built, folder = start_run(parser, config, "pretrain", DenseSiamPretraining.kind)
    with training_run("pretrain", built, folder) as trainer:
        trainer.fit(built.model, built.data, ckpt_path=built.ckpt_path, weights_only=True)
