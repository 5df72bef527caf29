"""Everything that only a GPU can show, in one command: the stages of a visit, run in this tree.

    python -m tools.gpu_report --output gpu-report [--quick]

The same stages, limits and report as those of the kit (docs/gpu.md), with the libraries that are
built here and the packages that are installed here. Exit code: 0 where all of it ran and is right,
1 where something failed or is wrong, 2 without a GPU. There, ``--allow-cpu`` goes through all of it
with the emulator in the GPU's place, and the report says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.gpu_kit import visit


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=Path("gpu-report"), help="folder to write")
    parser.add_argument("--quick", action="store_true", help="the benchmarks' quick mode")
    parser.add_argument("--allow-cpu", action="store_true", help="go on without a GPU")
    parser.add_argument("--stages", nargs="+", help="only these")
    parser.add_argument("tests", nargs="*", help="pytest's paths (after --), in place of all")
    options = parser.parse_args(arguments)
    given = ["--report", str(options.output)]
    given += ["--quick"] if options.quick else []
    given += ["--rehearse"] if options.allow_cpu else []
    given += ["--stages", *options.stages] if options.stages else []
    given += ["--tests", *options.tests] if options.tests else []
    return visit.main(visit.REPOSITORY, given)


if __name__ == "__main__":
    sys.exit(main())
