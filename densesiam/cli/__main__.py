"""``python -m densesiam.cli``: the command, for launchers that take a module."""

import sys

from densesiam.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
