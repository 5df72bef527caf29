"""Builds the CUDA kernels and their host code for the CPU: g++ and the emulator in place of nvcc.

A library is named after the content of its sources, so it is built once and never out of date.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "emulator"
STABLE_ABI = "0x020d000000000000"  # as in setup.py


def build_emulator(sanitize: str = "") -> Path:
    """Build every csrc/cuda/*.cu under the emulator.

    Args:
        sanitize: GCC's sanitizers, such as ``"address,undefined"``; their runtime must be loaded
            before Python (LD_PRELOAD).

    Returns:
        The library. ``torch.ops.load_library`` adds its operators to ``densesiam_emulator``.
    """
    from torch.utils.cpp_extension import library_paths

    torch = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu"]
    return _build("kernels", sorted((ROOT / "csrc/cuda").glob("*.cu")), sanitize, torch)


def build_faults(sanitize: str = "") -> Path:
    """Build the kernels with planted bugs that show that the emulator finds them."""
    return _build("faults", [HERE / "faults.cpp"], sanitize, [])


def _build(name: str, sources: list[Path], sanitize: str, libraries: list[str]) -> Path:
    sources = [*sources, HERE / "control.cpp"]
    flags = _flags(sanitize)
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in sorted([Path(__file__), *sources, *ROOT.glob("csrc/**/*.*h"), *HERE.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    library = BUILD / f"{name}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder = BUILD / f"{library.stem}-{os.getpid()}"
    folder.mkdir(parents=True)
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: _compile(*pair, flags), zip(sources, objects, strict=True)))
    built = folder / library.name
    _run([_compiler(), "-shared", "-o", built, *objects, *libraries, *_sanitizer(sanitize)])
    built.rename(library)  # at once: another process may be building the same
    return library


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _sanitizer(sanitize: str) -> list[str]:
    return [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g"] if sanitize else []


def _flags(sanitize: str) -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return [
        *("-std=c++20", "-O1" if sanitize else "-O2", "-fPIC", "-fvisibility=hidden"),
        *("-Wall", "-Wextra", "-Wno-unknown-pragmas"),
        "-ffp-contract=off",  # the same bits on every processor
        f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
        *(f"-isystem{path}" for path in include_paths()),
        *_sanitizer(sanitize),
    ]


def _compile(source: Path, target: Path, flags: list[str]) -> None:
    as_kernel = ["-include", HERE / "kernels.h"] if source.suffix == ".cu" else []
    _run([_compiler(), *flags, *as_kernel, "-x", "c++", "-c", source, "-o", target])


def _run(command: list[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise RuntimeError(f"the emulator could not be built: {done.args} failed\n{done.stderr}")


if __name__ == "__main__":
    print(build_emulator(*sys.argv[1:]))
