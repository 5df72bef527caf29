"""``python -m densesiam``: the command, also where its script is not on the path."""

import sys

from densesiam.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
