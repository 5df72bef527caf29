"""Other builds of the CPU kernels, for the tests: with sanitizers, or of the portable code alone.

A library is named after its flags and the content of its sources: it is built once and never out of
date.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "cpu-tests"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

TORCH = Path(torch.__file__).parent
COMPILE = [
    *("-std=c++20", "-O1", "-fPIC", "-fopenmp-simd", "-fvisibility=hidden"),
    *(
        "-isystem",
        str(TORCH / "include"),
        "-isystem",
        str(TORCH / "include/torch/csrc/api/include"),
    ),
]
LINK = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]


def build_cpu(name: str, *flags: str) -> Path:
    """Build the CPU kernels.

    Args:
        name: of the build, for its file.
        *flags: of the compiler, added to those that every build has.

    Returns:
        The library.

    Raises:
        RuntimeError: the compiler fails; the message holds its own.
    """
    digest = hashlib.sha256(" ".join([*COMPILE, *flags]).encode())
    for path in sorted([*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/cpu/*.cpp")]):
        digest.update(path.name.encode() + path.read_bytes())
    library = BUILD / f"{name}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    for old in BUILD.glob(f"{name}-*.so"):
        old.unlink()
    folder = BUILD / f"{name}-{os.getpid()}"
    folder.mkdir(parents=True)

    def compile_source(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run(COMPILER, *COMPILE, *flags, "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_source, sorted(ROOT.glob("csrc/cpu/*.cpp"))))
    built = folder / library.name
    _run(COMPILER, "-shared", *flags, *objects, "-o", built, *LINK)
    built.rename(library)  # at once: another process may be building the same
    shutil.rmtree(folder)
    return library


def runtime_library(name: str) -> str:
    """Full path of one of the compiler's libraries; the bare name where there is none."""
    question = [str(COMPILER), f"-print-file-name={name}"]
    return subprocess.run(question, capture_output=True, text=True).stdout.strip()


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the CPU kernels could not be built: {done.args}\n{done.stderr}")
