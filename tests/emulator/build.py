"""Builds the CUDA kernels and their host code for the CPU: g++ and the emulator in place of nvcc.

Objects and libraries are named after the content they are built from, so each is built once and
never out of date.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "emulator"

# Vector alignment is checked by the emulator itself, null by the processor; checks of both in every
# access, as of sizes that AddressSanitizer knows better, would double the time to compile.
SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr,null,alignment,object-size",
    "-fno-sanitize-recover=all",
]

# Compiler and linker flags of each build.
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    # Compiled in two thirds of the time of -O2, and as fast: most of it is the emulator's own work.
    "plain": (["-O1"], []),
    # Out of bounds, undefined behaviour. Both runtimes must be loaded before Python (LD_PRELOAD).
    "sanitized": (["-O1", "-g1", *SANITIZERS], SANITIZERS),
    # Calls a function of races.cpp before every access; ThreadSanitizer itself is not linked.
    "races": (["-O1", "-g", "-fsanitize=thread", "-DEMULATOR_RACES"], []),
    # Which lines of the kernels ran (coverage.py).
    "coverage": (["-O0", "--coverage"], ["--coverage"]),
}


def build_emulator(variant: str = "plain") -> Path:
    """Build every csrc/cuda/*.cu under the emulator.

    Args:
        variant: one of `VARIANTS`.

    Returns:
        The library. ``torch.ops.load_library`` adds its operators to ``densesiam_emulator``.
    """
    from torch.utils.cpp_extension import library_paths

    torch = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu"]
    return _build("kernels", sorted((ROOT / "csrc/cuda").glob("*.cu")), variant, torch)


def build_faults(variant: str = "plain") -> Path:
    """Build the kernels with planted bugs that show that the emulator finds them."""
    return _build("faults", [HERE / "faults.cpp"], variant, [])


def _build(name: str, sources: list[Path], variant: str, libraries: list[str]) -> Path:
    sources = [*sources, HERE / "control.cpp"]
    if variant == "races":
        sources.append(HERE / "races.cpp")
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, variant), sources))
    link = [*objects, *libraries, *VARIANTS[variant][1]]
    digest = hashlib.sha256(" ".join(map(str, link)).encode()).hexdigest()[:16]
    return _make(
        BUILD / f"{name}-{variant}-{digest}.so",
        lambda target: [_compiler(), "-shared", "-o", target, *link],
    )


def _compile(source: Path, variant: str) -> Path:
    flags = [*_flags(variant), "-x", "c++"]
    if source.suffix == ".cu":
        flags += ["-include", str(HERE / "kernels.h")]
    if source.name == "races.cpp":
        flags += ["-O2", "-fno-sanitize=all"]
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in [source, *sorted([*ROOT.glob("csrc/**/*.*h"), *HERE.glob("*.h")])]:
        digest.update(path.name.encode() + path.read_bytes())
    return _make(
        BUILD / f"{source.stem}-{variant}-{digest.hexdigest()[:16]}.o",
        lambda target: [_compiler(), *flags, "-c", source, "-o", target],
    )


def _make(target: Path, command: Callable[[Path], list[str | Path]]) -> Path:
    """Run a command that writes a file, unless it is there; or wait for the process that does."""
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}{target.suffix}")
            _run(command(unfinished))
            unfinished.rename(target)  # at once: a build that is cut short leaves nothing
    return target


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _flags(variant: str) -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return [
        *("-std=c++20", "-fPIC", "-fvisibility=hidden"),
        *("-Wall", "-Wextra", "-Wno-unknown-pragmas"),
        "-ffp-contract=off",  # the same bits on every processor
        *(f"-isystem{path}" for path in include_paths()),
        *VARIANTS[variant][0],
    ]


def _run(command: list[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise RuntimeError(f"the emulator could not be built: {done.args} failed\n{done.stderr}")


if __name__ == "__main__":
    print(build_emulator(*sys.argv[1:]))
