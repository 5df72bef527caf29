"""The subcommands of ``densesiam``, and their parsers.

A subcommand's module has ``USAGE`` for its help, ``add_arguments(parser)``, and
``run(parser, config)``. It is imported when it is asked for: torch and Lightning take seconds to
load, which a help text or a misspelt command need not wait for.
"""

import importlib
from collections.abc import Collection
from types import ModuleType

from jsonargparse import ArgumentParser

from densesiam import __version__

# Each subcommand, and what it does.
COMMANDS: dict[str, str] = {
    "fit": "Train on a folder of images.",
    "validate": "Score a model on labelled images.",
    "predict": "Segment photographs with a trained model.",
    "pretrain": "Pre-train a backbone on a folder of images.",
    "picie": "Train PiCIE, which DenseSiam is measured against.",
    "transfer": "Fine-tune a pre-trained backbone: detection, instance or semantic segmentation.",
    "probe": "Probe a frozen backbone: linear segmentation, nearest neighbours, linear "
    "classification.",
    "export": "Write a trained model in the form that other software reads.",
    "demo": "Train on nine photographs and segment them, in about two minutes.",
}


def command_module(name: str) -> ModuleType:
    """The module of a subcommand."""
    return importlib.import_module(f"densesiam.cli.{name}")


def build_parsers(
    wanted: Collection[str] = tuple(COMMANDS),
) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of the command, and those of its subcommands.

    Args:
        wanted: the subcommands whose arguments are to be known; the others have their names alone.
    """
    parser = ArgumentParser(
        prog="densesiam",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
        description="Learn to segment images without labels (DenseSiam, ECCV 2022). "
        "New here? Try `densesiam demo`, then "
        "`densesiam fit --config configs/folder.yaml --data.train YOUR_PHOTOS`.",
    )
    subcommands = parser.add_subcommands(dest="command", required=True)
    parsers = {}
    for name, summary in COMMANDS.items():
        module = command_module(name) if name in wanted else None
        parsers[name] = ArgumentParser(
            exit_on_error=False,
            allow_abbrev=False,
            description=summary,
            usage=f"densesiam {name} {module.USAGE}" if module else None,
        )
        subcommands.add_subcommand(name, parsers[name], help=summary)
        if module is not None:
            module.add_arguments(parsers[name])  # after that: it may have subcommands of its own
    return parser, parsers
