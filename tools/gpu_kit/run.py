"""Run this on the machine with the GPU: ``python3 run.py --help``; README.md says the rest."""

import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def has_torch(python):
    """Whether that Python can import torch."""
    found = [python, "-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('torch'))"]
    return subprocess.call(found, stderr=subprocess.DEVNULL) == 0


def main():
    """Find the Python that has torch, and go."""
    if "GPU_KIT_PYTHON" not in os.environ and not has_torch(sys.executable):
        for name in ("python3", "python"):
            other = shutil.which(name)
            if other and other != sys.executable and has_torch(other):
                os.environ["GPU_KIT_PYTHON"] = other
                os.execv(other, [other, os.path.abspath(__file__), *sys.argv[1:]])
    if sys.version_info < (3, 11):  # noqa: UP036  # whoever has an older one is to be told
        version = ".".join(str(number) for number in sys.version_info[:2])
        sys.stderr.write(
            f"this is Python {version}, and 3.11 or newer is needed. Run it with the Python that "
            "has torch 2.10 or newer\n"
        )
        return 2
    sys.dont_write_bytecode = True  # the kit may be write-protected
    sys.path.insert(0, os.path.join(HERE, "source"))
    from pathlib import Path

    from tools.gpu_kit.visit import main as visit

    return visit(Path(HERE))


if __name__ == "__main__":
    sys.exit(main())
