"""``python -m tools.gpu_kit build | visit | rehearse | commit``: see docs/gpu.md."""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("build", "visit", "rehearse", "commit")


def main() -> int:
    """Run one of the commands."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m tools.gpu_kit {' | '.join(COMMANDS)} (each takes --help)")
        return 2
    module = importlib.import_module(f"tools.gpu_kit.{sys.argv[1]}")
    if sys.argv[1] == "visit":
        return module.main(module.REPOSITORY, sys.argv[2:])
    return module.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
