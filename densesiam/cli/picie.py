"""``densesiam picie``: segment by clustering, the baseline, through all that `fit` uses."""

from jsonargparse import ArgumentParser, Namespace

from densesiam.cli import validate
from densesiam.cli.fit import fit
from densesiam.data.modules.two_views import SegmentationData
from densesiam.methods import PiCIE
from densesiam.training.run import (
    RESUME_HELP,
    add_change_argument,
    add_config_arguments,
    method_run,
)

USAGE = "--config FILE [--data.train FOLDER] [--output FOLDER] [other settings]"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config_arguments(
        parser,
        PiCIE,
        SegmentationData,
        f"{RESUME_HELP} With --evaluate true: the checkpoint to score.",
    )
    add_change_argument(parser)
    parser.add_argument(
        "--evaluate",
        type=bool,
        default=False,
        help="Score as `densesiam validate` does, with its report, and train nothing.",
    )
    validate.add_scoring_arguments(parser)


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    if config.evaluate:
        validate.run(parser, config)
        return
    with method_run("picie", parser, config) as training:
        if training is not None:
            fit(training)
