"""What the tests of installations share."""

import venv
from pathlib import Path

import pytest


def make_environment(folder: Path) -> tuple[Path, Path]:
    """A fresh environment that also sees this one's packages: its Python, its site-packages."""
    venv.create(folder, with_pip=False)
    site_packages = next(folder.glob("lib/python*/site-packages"))
    ours = Path(pytest.__file__).parents[1]
    (site_packages / "ours.pth").write_text(str(ours))
    return folder / "bin" / "python", site_packages
