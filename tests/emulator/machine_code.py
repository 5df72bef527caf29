"""The public operations on the machine code that nvcc made: launches go to `tools.sass`."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from densesiam._libraries import build_info
from densesiam.ops import _backends
from tests.emulator import emulated, load_emulator, served_by
from tools.audit import LIBRARY, demangled, tool
from tools.sass.machine import Launch, Machine
from tools.sass.program import Program, read_program, scratch, symbols


class _Record(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_bytes", ctypes.c_size_t),
        ("arguments", ctypes.c_void_p),
        ("argument_bytes", ctypes.c_size_t),
    )


Observer = Callable[[str, Launch], bool]
"""Is told a kernel's short name, as in the static audit, and its launch; whether it ran it."""


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Run the public operations on the emulator, and tell of each launch before it runs."""
    with observing(observer), emulated():
        yield


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Tell of each launch on the emulator before it runs, whatever runs there."""
    library = load_emulator()
    names = _kernel_names(Path(library._name))
    failures: list[BaseException] = []

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(_Record))
    def call(pointer: ctypes._Pointer[_Record]) -> bool:  # an exception must not cross C++
        record = pointer.contents
        arguments = ctypes.string_at(record.arguments, record.argument_bytes)
        grid, block = tuple(record.grid), tuple(record.block)
        try:
            name = names[record.kernel - _base(Path(library._name))]
            return observer(name, Launch(grid, block, arguments, record.dynamic_bytes))
        except BaseException as error:
            failures.append(error)
            return True

    library.emulator_observe(call)
    try:
        yield
    finally:
        library.emulator_observe(None)
    if failures:
        raise failures[0]


def built_for(*architectures: str) -> bool:
    """Whether there is a CUDA library, and these are among what it was built for."""
    return LIBRARY.exists() and set(architectures) <= set(
        (build_info()["architectures"] or "").split()
    )


@contextmanager
def on_machine_code(architecture: str, library: Path = LIBRARY) -> Iterator[None]:
    """Run the public operations on the machine code of one architecture."""

    def run(name: str, launch: Launch) -> bool:
        Machine(program(architecture, name, library)).run(launch)
        return True

    with observed(run):
        yield


@contextmanager
def observed_triton(
    architectures: Sequence[str], observer: Callable[[str, Program, Launch], None]
) -> Iterator[None]:
    """Run the public operations on Triton, and tell of each launch instead of running it.

    Args:
        architectures: to compile for, such as "sm_80".
        observer: is told each of them, the kernel's code, and its launch.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, which leaves nothing to compile.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set: unset it, so that Triton compiles")
    from tools.triton_kernels import observing_launches  # it imports Triton

    def tell(architecture: int, code: Program, launch: Launch) -> None:
        observer(f"sm_{architecture}", code, launch)

    numbers = [int(name.removeprefix("sm_")) for name in architectures]
    triton = served_by(_backends.NAMESPACES["triton"], _backends._KERNELS["triton"])
    with observing_launches(numbers, tell), triton:
        yield


@contextmanager
def on_triton_machine_code(architecture: str) -> Iterator[None]:
    """Run the public operations on the machine code that Triton makes for one architecture."""
    with observed_triton([architecture], lambda _, code, launch: Machine(code).run(launch)):
        yield


@cache
def program(architecture: str, name: str, library: Path = LIBRARY) -> Program:
    """The code of a kernel in a CUDA library.

    Args:
        architecture: such as "sm_90".
        name: the short one, as in the static audit.
        library: the file.

    Raises:
        LookupError: the library has no such kernel for this architecture.
    """
    found = _programs(architecture, library).get(name)
    if found is None:
        raise LookupError(f"{library} has no {name} for {architecture}: build it (FORCE_CUDA=1)")
    return read_program(*found)


@cache
def _programs(architecture: str, library: Path) -> dict[str, tuple[Path, str]]:
    folder = Path(tempfile.mkdtemp(dir=scratch().name))
    command = [tool("cuobjdump"), "-xelf", architecture, library.resolve()]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    cubins = {name: cubin for cubin in sorted(folder.iterdir()) for name in symbols(cubin)}
    short = demangled(sorted(cubins))
    return {short[name]: (cubin, name) for name, cubin in cubins.items()}


@cache
def _kernel_names(library: Path) -> dict[int, str]:
    """Short names by place in the file."""
    listing = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    places = {}
    for line in listing.splitlines():
        if found := re.match(r"([0-9a-f]+) [tTwW] (_ZN9densesiam8emulated\S+)$", line):
            places[found[2]] = int(found[1], 16)
    names = demangled(sorted(places), "emulated")
    return {place: names[name] for name, place in places.items()}


@cache
def _base(library: Path) -> int:
    """Where a loaded library begins."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(library)):
            return int(line.split("-")[0], 16)
    raise LookupError(f"{library} is not loaded")
