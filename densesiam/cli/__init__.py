"""The command ``densesiam``: one module for each subcommand, and `registry`, which lists them."""

from densesiam.cli.main import main, run

__all__ = ["main", "run"]
