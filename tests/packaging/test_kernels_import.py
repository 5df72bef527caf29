"""`kernels/` is imported as densesiam.kernels however the project was installed.

It must never answer to the name ``kernels``, which belongs to a package of Hugging Face's. That is
why it has no ``__init__.py``: even from the repository's root, Python prefers a regular package.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.support import make_environment

ROOT = Path(__file__).parents[2]
INSTALLS = {
    "source tree": None,
    "editable": ["--editable", "."],
    "strict editable": ["--editable", ".", "--config-settings", "editable_mode=strict"],
    "wheel": ["."],
}
LOAD = """
import densesiam.ops
from densesiam.ops import _triton
print(_triton.load_module("overlap_sample").__file__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "install",
    # Strict editable is the rarest, and each takes a quarter of a minute.
    [pytest.param(each, marks=[pytest.mark.faults] * ("strict" in each)) for each in INSTALLS],
)
def test_kernels_import(install: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    source = _copy_of_source(tmp_path / "source")
    python, site_packages = make_environment(tmp_path / "venv")
    stranger = site_packages / "kernels" / "__init__.py"
    stranger.parent.mkdir()
    stranger.touch()

    environment = os.environ | {"PATH": str(python.parent)}  # no compiler: a quick build
    environment.pop("PYTHONPATH", None)  # the caller's may hold another densesiam
    options = INSTALLS[install]
    if options is not None:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        pip += ["--no-build-isolation", "--no-deps", *options]
        subprocess.run(pip, cwd=source, env=environment, check=True)

    def run(code: str, cwd: Path) -> str:
        command = [str(python), "-W", "ignore", "-c", code]
        result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    elsewhere = tmp_path if options else source
    loaded = Path(run(LOAD, elsewhere)).resolve()
    expected = site_packages / "densesiam" if install == "wheel" else source
    assert loaded == (expected / "kernels" / "overlap_sample.py").resolve()
    for folder in (tmp_path, source):
        assert run("import kernels; print(kernels.__file__)", folder) == str(stranger)


def _copy_of_source(folder: Path) -> Path:
    """What a build reads, without what earlier builds have left."""
    clutter = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("densesiam", "kernels", "csrc", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=clutter)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").touch()
    return folder
