"""What the command ``densesiam`` can do: one module for each subcommand, and what they share.

A subcommand's module has ``SUMMARY`` and ``USAGE`` for its help, ``add_arguments(parser)``, and
``run(parser, config)``; `densesiam.cli` lists them.
"""
