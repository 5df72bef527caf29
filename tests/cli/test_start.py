"""What a start loads: nothing that takes seconds, where a text is all that is wanted."""

import json
import subprocess
import sys

import pytest

from densesiam.cli.outline import HEAVY
from densesiam.cli.registry import COMMANDS, build_parsers
from tests import PATIENCE


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--version"], 0, "0."),
        (["--help"], 0, "Train on a folder of images."),
        (["fitt"], 2, "invalid choice: 'fitt'"),
        ([], 2, "densesiam: error: "),
        (["--verbose"], 2, "densesiam: error: "),
        (["fit", "--help"], 0, "--model.num_classes"),
        (["transfer", "detection", "-h"], 0, "--model.frozen_batchnorm"),
        (["fitt", "--help"], 2, "invalid choice: 'fitt'"),
    ],
    ids=str,
)
def test_texts_load_nothing_heavy(args, code, said):
    # Time depends on the machine; what is loaded does not.
    program = (
        "import atexit, sys\n"
        f"heavy = {set(HEAVY)}\n"
        "atexit.register(lambda: print('loaded', *sorted(heavy & sys.modules.keys())))\n"
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


def helps():
    """The help texts of every command and task, by what is typed."""

    def of(parser, name):
        yield name, parser.format_help()
        for action in parser._actions:
            if isinstance(action.choices, dict):
                for task, each in action.choices.items():
                    yield from of(each, f"{name} {task}")

    for name, parser in build_parsers()[1].items():
        yield from of(parser, name)


def test_help_without_libraries_says_the_same(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    program = (
        "import json\n"
        "from densesiam.cli.outline import outlines\n"
        "from tests.cli.test_start import helps\n"
        "with outlines():\n"
        "    texts = list(helps())\n"
        "print(json.dumps(texts))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE
    )
    expected = dict(helps())
    assert len(expected) == len(COMMANDS) + 5
    assert dict(json.loads(result.stdout)) == expected


def test_outlines_leave_nothing():
    program = (
        "import sys\n"
        "from densesiam import cli\n"
        "from densesiam.cli.outline import HEAVY, outlines\n"
        "with outlines():\n"
        "    from densesiam.cli import fit\n"
        "assert not any(name.split('.')[0] in HEAVY for name in sys.modules)\n"
        "assert 'densesiam.cli.fit' not in sys.modules and not hasattr(cli, 'fit')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
