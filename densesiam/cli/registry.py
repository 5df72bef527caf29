"""The subcommands of ``densesiam``, and their parsers.

A subcommand's module has ``SUMMARY`` and ``USAGE`` for its help, ``add_arguments(parser)``, and
``run(parser, config)``.
"""

from types import ModuleType

from jsonargparse import ArgumentParser

from densesiam import __version__
from densesiam.cli import demo, export, fit, picie, predict, pretrain, probe, transfer, validate

# Each subcommand and its module.
COMMANDS: dict[str, ModuleType] = {
    "fit": fit,
    "validate": validate,
    "predict": predict,
    "pretrain": pretrain,
    "picie": picie,
    "transfer": transfer,
    "probe": probe,
    "export": export,
    "demo": demo,
}


def build_parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of the command, and those of its subcommands."""
    parser = ArgumentParser(
        prog="densesiam",
        version=__version__,
        exit_on_error=False,
        description="Learn to segment images without labels (DenseSiam, ECCV 2022). "
        "New here? Try `densesiam demo`, then "
        "`densesiam fit --config configs/folder.yaml --data.train YOUR_PHOTOS`.",
    )
    subcommands = parser.add_subcommands(dest="command", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        parsers[name] = ArgumentParser(
            exit_on_error=False,
            description=command.SUMMARY,
            usage=f"densesiam {name} {command.USAGE}",
        )
        subcommands.add_subcommand(name, parsers[name], help=command.SUMMARY)
        command.add_arguments(parsers[name])  # after that: it may have subcommands of its own
    return parser, parsers
