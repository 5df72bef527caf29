"""The command ``densesiam``: train, validate, segment photographs, or see all of it in a demo."""

import logging
import os
import re
import sys
import warnings

# Before torch starts its threads: idle ones are to sleep rather than to spin. Where cores are
# shared with other programs, spinning ones keep each other from working; the demo then trained on
# 2 images a second, against 11 like this.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

from jsonargparse import ArgumentError, ArgumentParser

from densesiam.cli.allocation import keep_memory
from densesiam.cli.mistakes import of_another_command, readable, unreadable_config
from densesiam.cli.outline import outlines
from densesiam.cli.registry import COMMANDS, build_parsers, command_module
from densesiam.cli.shipped import with_shipped
from densesiam.training.console import UsageError

_INTERRUPTED = 130  # what shells report after Ctrl-C: 128 + SIGINT

# What can go wrong through the user's input or machine; anything else is a fault of the program,
# and shows its traceback.
_EXPECTED = (ValueError, OSError, RuntimeError, ModuleNotFoundError)

# Warnings that Lightning raises in runs that are as they should be.
_NO_CONCERN_OF_THE_USER = (
    r".*isinstance\(treespec, LeafSpec\)",  # between Lightning and torch
    r"Checkpoint directory .* exists and is not empty",  # of course, where a run goes on
)


def run(args: Sequence[str] | None = None) -> None:
    """Run the command as `main` does, but raise its errors.

    Args:
        args: the command line after ``densesiam``; that of the process by default.

    Raises:
        UsageError: a mistake on the command line or in a config file.
        Interrupted: Ctrl-C.
    """
    args = with_shipped(sys.argv[1:] if args is None else args)
    if _asks_for_help(args) and "torch" not in sys.modules:
        # Where it comes to nothing, what was asked for is told as without it, only later.
        with suppress(Exception), outlines():
            build_parsers(_named(args))[0].parse_args(args)  # prints it, and exits
    parser, parsers = build_parsers(_named(args))
    try:
        config = parser.parse_args(args)
    except (ArgumentError, UnicodeDecodeError) as error:
        said = unreadable_config(args)
        if said is None:
            said = readable(_said_by_task(args, parsers) or str(error), parsers)
            if (hint := of_another_command(args, lambda: build_parsers()[1])) is not None:
                said = f"{said}. {hint}"
        raise UsageError(said) from error
    if (hint := of_another_command(args)) is not None:
        warnings.warn(hint, stacklevel=2)
    command = config.command
    keep_memory()
    command_module(command).run(parsers[command], config[command])


def _said_by_task(args: Sequence[str], parsers: dict[str, ArgumentParser]) -> str | None:
    """What the parser of a command's task says; the command's knows mistakes within it by no name.

    Args:
        args: the command line.
        parsers: of the commands.
    """
    for parser in (parsers[name] for name in _named(args)):
        for action in parser._actions:
            if isinstance(action.choices, dict) and args[1:2] and args[1] in action.choices:
                try:
                    action.choices[args[1]].parse_args(args[2:])
                except ArgumentError as error:
                    return str(error)
    return None


def _asks_for_help(args: Sequence[str]) -> bool:
    """Whether this is nothing but a command, or one of its tasks, and --help."""
    *named, last = args or [""]
    return last in ("-h", "--help") and not any(arg.startswith("-") for arg in named)


def _named(args: Sequence[str]) -> Sequence[str]:
    """The subcommand that is named: its arguments alone, and what they load, are needed."""
    return args[:1] if args and args[0] in COMMANDS else ()


def main(args: Sequence[str] | None = None) -> int:
    """Run the command, and say in a line what went wrong, if anything did.

    Args:
        args: the command line after ``densesiam``; that of the process by default.

    Returns:
        0 for success, 1 after an error, 2 after a mistake on the command line or in a config file,
        3 where some images could not be predicted, 130 after Ctrl-C, 143 after SIGTERM, 138 after
        SIGUSR1, 129 after SIGHUP. With DENSESIAM_DEBUG=1 in the environment, errors are raised
        instead, with their traceback.
    """
    args = sys.argv[1:] if args is None else args
    with _calm() if _named(args) and not _asks_for_help(args) else nullcontext():
        try:
            run(args)
        except KeyboardInterrupt as interrupt:
            print(f"\n{interrupt or 'interrupted'}", file=sys.stderr)
            return getattr(interrupt, "code", _INTERRUPTED)
        except _EXPECTED as error:
            if os.environ.get("DENSESIAM_DEBUG") == "1":
                raise
            print(f"densesiam: error: {_message(error)}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else getattr(error, "code", 1)
    return 0


@contextmanager
def _calm() -> Iterator[None]:
    """Show what matters: our warnings in one line, and none of Lightning's hints."""
    from lightning.pytorch.utilities.warnings import PossibleUserWarning  # takes seconds

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    show = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.formatwarning = lambda message, *_, **__: f"densesiam: warning: {message}\n"
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for hint in _NO_CONCERN_OF_THE_USER:
            warnings.filterwarnings("ignore", message=hint)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            warnings.formatwarning = show
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _message(error: BaseException) -> str:
    """The error's own words; those of a loader's process come wrapped in its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = re.sub(r"^[\w.]*(?:Error|Exception): ", "", text.splitlines()[-1])
    return text or type(error).__name__
