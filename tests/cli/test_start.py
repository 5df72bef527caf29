"""What a start loads: nothing that takes seconds, where a text is all that is wanted."""

import subprocess
import sys

import pytest

from tests import PATIENCE

HEAVY = {"torch", "lightning", "torchvision", "timm", "numpy", "PIL", "sklearn", "scipy"}


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--version"], 0, "0."),
        (["--help"], 0, "Train on a folder of images."),
        (["fitt"], 2, "invalid choice: 'fitt'"),
        ([], 2, "densesiam: error: "),
        (["--verbose"], 2, "densesiam: error: "),
    ],
    ids=str,
)
def test_texts_load_nothing_heavy(args, code, said):
    # Time depends on the machine; what is loaded does not.
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', *sorted({HEAVY} & sys.modules.keys())))\n"
        "from densesiam.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == code
    assert said in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1] == "loaded"
