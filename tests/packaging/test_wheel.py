"""The source archive holds all that a build reads, and the wheel made from it works anywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from densesiam import _libraries
from tests.packaging.support import make_environment

ROOT = Path(__file__).parents[2]
SHIPPED = ("configs", "csrc", "densesiam", "kernels", "studies")

USE = """
import sys
from pathlib import Path
import torch
import densesiam
from densesiam import ops, reference
from densesiam.cli import demo
from densesiam.ops import _backends

logits = torch.randn(2, 5, 7, 6)
with ops.use_backend("cpu"):
    assert torch.equal(ops.label_map(logits, 13), reference.label_map(logits, 13))
package = Path(densesiam.__file__).parent
assert demo.CONFIG == package / "configs" / "demo.yaml" and demo.CONFIG.is_file()
print(package)
print(_backends.missing("cuda"))
"""


def files(folder: Path) -> set[str]:
    """What belongs to the package, without what Python and earlier builds have left."""
    return {
        str(path.relative_to(folder))
        for name in SHIPPED
        for path in (folder / name).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    for name in SHIPPED:
        clutter = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=clutter)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    make = "import setuptools.build_meta as build; build.build_sdist('..')"
    subprocess.run([sys.executable, "-c", make], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as packed:
        packed.extractall(folder, filter="data")
    return next(path for path in folder.glob("densesiam-*") if path.is_dir())


def toolkit_of_torch() -> bool:
    """Whether there is an nvcc, of the CUDA that torch was built with, if with any."""
    if shutil.which("nvcc") is None:
        return False
    told = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    major = re.search(r"release (\d+)", told)[1]
    return (torch.version.cuda or major).split(".")[0] == major


@pytest.mark.slow
def test_archive_is_complete(archive):
    assert files(archive) == files(ROOT)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"):
        assert (archive / name).is_file()


def check_wheel_of_every_python(wheel: Path, libraries: set[str]) -> None:
    """It is of no Python but the oldest, and its report reads as the module's does."""
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        report = json.loads(packed.read("densesiam/_info.json"))
    assert {Path(name).name for name in names if ".so" in name} == {
        f"{library}.abi3.so" for library in libraries
    }
    assert report["stable_abi"] == "2.10"
    assert set(report) == set(_libraries.build_info())


@pytest.mark.slow
def test_wheel_runs_from_any_folder(archive, tmp_path):
    cuda = toolkit_of_torch()
    source = shutil.copytree(archive, tmp_path / "source")
    # One operation's sources, on one architecture: what is shown here is the packaging, and all of
    # them take minutes to compile. `make` builds them all.
    for path in [*source.glob("csrc/cpu/*.cpp"), *source.glob("csrc/cuda/*.cu")]:
        if path.stem not in ("interface", "label_map"):
            path.unlink()
    python, site_packages = make_environment(tmp_path / "venv")
    build = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"} if cuda else {"FORCE_CPU": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FORCE_")}
    every = kept | build | {"DENSESIAM_WHEEL": "1"}
    pip = [sys.executable, "-m", "pip"]
    make = [*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "."]
    done = subprocess.run(make, cwd=source, env=every, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = source.glob("*.whl")
    check_wheel_of_every_python(wheel, {"_cpu"} | ({"_cuda"} if cuda else set()))
    install = [*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    shutil.rmtree(source)

    package = site_packages / "densesiam"
    libraries = {path.name.split(".")[0] for path in package.glob("*.so")}
    assert libraries == {"_cpu"} | ({"_cuda"} if cuda else set())
    run = subprocess.run(
        [str(python), "-W", "ignore", "-c", USE], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    where, missing = run.stdout.splitlines()
    assert Path(where) == package
    if not cuda:
        assert missing.startswith("it was not built")
    elif not torch.cuda.is_available():
        assert missing.startswith("it was built")
