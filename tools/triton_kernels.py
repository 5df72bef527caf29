"""What the Triton kernels compile to, for GPUs that need not be here.

Each operation is called with tensors of the method's own shapes on the meta device. Its launches
are caught and compiled, specialised exactly as they would be with a GPU, but not run.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks import ops
from densesiam.ops import _triton
from tools.sass.machine import LANES, Launch
from tools.sass.program import Program, read_program, scratch, symbols

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Variant(NamedTuple):
    """What kernels are specialised for."""

    arch: int
    dtype: str
    layout: str
    wide: bool = False  # offsets for images of more than 2^31 elements


VARIANTS = (
    Variant(80, "bfloat16", "channels_last"),
    Variant(80, "float64", "planar"),
    Variant(90, "float32", "planar"),
    Variant(90, "float64", "channels_last"),
    Variant(90, "float32", "planar", wide=True),
    Variant(100, "float16", "planar"),
    Variant(100, "bfloat16", "planar"),
    Variant(120, "float32", "channels_last"),
    Variant(120, "float16", "channels_last"),
)
"""Every architecture, and every type in both layouts: all 32 would take four times as long."""


class Compiled(NamedTuple):
    """One kernel of one variant.

    Attributes:
        name: such as ``region_pool._forward<128 regions, float32, planar>``.
        cubin: machine code.
        shared: bytes of shared memory a block.
        bfloat16_arithmetic: operations that compute with bfloat16 (all must be of float32).
    """

    name: str
    cubin: bytes
    shared: int
    bfloat16_arithmetic: list[str]


class _Target:
    """Stands in for a driver: all that compiling asks of one is what to compile for."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def _compiling(launched: Callable[..., Any]) -> Iterator[None]:
    """Hand the arguments of every launch to a function that compiles, and run nothing."""
    run = JITFunction.run
    JITFunction.run = lambda self, *args, **kwargs: launched(run, self, *args, **kwargs)
    try:
        yield
    finally:
        JITFunction.run = run


def _name(function: Any) -> str:
    return f"{function.fn.__module__.rpartition('.')[2]}.{function.fn.__name__}"


@contextmanager
def catching_launches(arch: int) -> Iterator[list[tuple[str, Any]]]:
    """Compile what is launched inside the block, and collect it instead of running it."""
    caught: list[tuple[str, Any]] = []

    def launched(run: Any, function: Any, *args: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(function, *args, warmup=True, **kwargs)
        caught.append((_name(function), kernel))
        return kernel

    driver.set_active(_Target(arch))
    with _compiling(launched):
        yield caught


@contextmanager
def observing_launches(
    architectures: Sequence[int], observer: Callable[[int, Program, Launch], None]
) -> Iterator[None]:
    """Compile what is launched inside the block, and tell of its machine code and its arguments.

    Args:
        architectures: to compile for, such as 80.
        observer: is told each of them, the code, and the launch; tensors are where they are.
    """

    def launched(
        run: Any, function: Any, *args: Any, warmup: bool, grid: Sequence[int], **kwargs: Any
    ) -> Any:
        names = [each.name for each in function.params]
        given = dict(zip(names, args, strict=False)) | kwargs
        kernel = None
        for architecture in architectures:
            driver.set_active(_Target(architecture))
            kernel = run(function, *args, warmup=True, grid=grid, **kwargs)
            metadata, signature = kernel.metadata, kernel.src.signature
            assert metadata.global_scratch_size == metadata.profile_scratch_size == 0, names
            packed = packed_arguments(signature.values(), [given.get(name) for name in signature])
            launch = Launch(
                tuple([*grid, 1, 1][:3]),
                (LANES * metadata.num_warps, 1, 1),
                packed,
                metadata.shared,
            )
            observer(architecture, _program(kernel.asm["cubin"], _name(function)), launch)
        return kernel

    with _compiling(launched):
        yield


_FORMATS = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u32": "I", "u64": "Q"}
_FORMATS |= {"fp32": "f", "fp64": "d"}


def packed_arguments(types: Iterable[Any], values: Iterable[Any]) -> bytes:
    """A kernel's parameters, each at a multiple of its size, and two pointers to no scratch memory.

    Args:
        types: of the signature, such as "*fp32" or "i32", or tuples of them; what is "constexpr" is
            in the code itself.
        values: tensors and numbers.
    """
    packed = b""
    for kind, value in [*_flat(types, values), ("u64", 0), ("u64", 0)]:
        form, value = ("Q", value.data_ptr()) if kind.startswith("*") else (_FORMATS[kind], value)
        size = struct.calcsize(form)
        packed = packed.ljust(-(-len(packed) // size) * size, b"\0") + struct.pack(form, value)
    return packed


def _flat(types: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


@cache
def _program(cubin: bytes, name: str) -> Program:
    path = Path(scratch().name) / f"triton-{hash(cubin)}.cubin"
    path.write_bytes(cubin)
    (symbol,) = symbols(path)
    return replace(read_program(path, symbol), name=name)


def compile_kernels(variant: Variant) -> list[Compiled]:
    """Compile every kernel of every operation for one variant, each once."""
    dtype, channels_last = DTYPES[variant.dtype], variant.layout == "channels_last"

    def make(*shape: int) -> Tensor:
        if not channels_last:
            return torch.empty(shape, dtype=dtype, device="meta")
        batch, channels, *spatial = shape
        stored = torch.empty(batch, *spatial, channels, dtype=dtype, device="meta")
        return stored.movedim(-1, 1)

    compiled = {}
    with catching_launches(variant.arch) as caught, ExitStack() as patches:
        if variant.wide:
            patches.enter_context(
                mock.patch.object(_triton.load_module("launch"), "LARGEST_IMAGE", 0)
            )
        for name in sorted(_triton.kernels()):
            op = _triton.load_module(name)
            for case in ops.MODULES[name].triton_kernels(op, make, channels_last):
                for name, kernel in caught:
                    name = f"{name}<{case}, {variant.dtype}, {variant.layout}"
                    name += f"{', wide' if variant.wide else ''}>"
                    arithmetic = bfloat16_arithmetic(kernel.asm["ttir"] + kernel.asm["ttgir"])
                    cubin, shared = kernel.asm["cubin"], kernel.metadata.shared
                    compiled.setdefault(kernel.hash, Compiled(name, cubin, shared, arithmetic))
                caught.clear()
    return list(compiled.values())


def bfloat16_arithmetic(ir: str) -> list[str]:
    """Arithmetic on bfloat16 in Triton's IR. Conversions and tensor-core products are none."""
    found = re.findall(r"(?:= |^\s*)\"?((?:arith|math|tt\.reduce)[\w.]*).*bf16", ir, re.MULTILINE)
    return sorted(set(found) - {"arith.extf", "arith.truncf", "arith.constant"})
