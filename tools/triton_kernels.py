"""What the Triton kernels compile to, for GPUs that need not be here.

Each operation is called with tensors of the method's own shapes on the meta device. Its launches
are caught and compiled, specialised exactly as they would be with a GPU, but not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks import ops
from densesiam.ops import _triton

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
def catching_launches(arch: int) -> Iterator[list[tuple[str, Any]]]:
    """Compile what is launched inside the block, and collect it instead of running it."""
    caught: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, warmup=True, **kwargs)
        caught.append((f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}", kernel))
        return kernel

    driver.set_active(_Target(arch))
    JITFunction.run = compile_only
    try:
        yield caught
    finally:
        JITFunction.run = run


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
