"""What the Triton kernels compile to, for GPUs that need not be here.

Each operation is called with tensors of the method's own shapes on the meta device. Its launches
are caught and compiled, specialised exactly as they would be with a GPU, but not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

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
def _catching_launches(arch: int) -> Iterator[list[tuple[str, Any]]]:
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


Make = Callable[..., Tensor]


def _overlap_sample(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    features, boxes = make(64, 128, 80, 80), torch.empty(64, 4, device="meta")
    op.overlap_sample(features, boxes, [80, 80])
    op.overlap_sample_backward(features, boxes, [80, 80], channels_last)
    yield "80 x 80"


def _pixel_similarity(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    for kind, channels in (("cosine", 128), ("cross_entropy", 27)):
        p, z = make(64, channels, 6400), make(64, channels, 6400)
        weight = _accumulator(p, 64)
        loss, statistics = op.pixel_similarity(p, z, kind, weight, "mean")
        op.pixel_similarity_backward(loss, p, z, kind, weight, "mean", statistics)
        yield kind


def _overlap_similarity(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    for kind, channels, extent in (("cosine", 2048, 7), ("cross_entropy", 256, 56)):
        p, z = make(64, channels, extent, extent), make(64, channels, extent, extent)
        boxes, weight = torch.empty(64, 4, device="meta"), _accumulator(p, 64)
        call = p, z, boxes, boxes, [7, 7], kind, weight, "mean"
        loss, statistics = op.overlap_similarity(*call)
        op.overlap_similarity_backward(loss, *call, statistics)
        yield f"overlap {kind}"


def _region_pool(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    for regions in (27, 128):
        features, logits = make(64, 128, 6400), make(64, regions, 6400)
        out, mass, log_sum = op.region_pool(features, logits)
        op.region_pool_backward(out, mass, features, logits, log_sum, True, True)
        yield f"{regions} regions"


def _pseudo_label_loss(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    logits, targets = make(64, 27, 6400), make(64, 27, 6400)
    op.pseudo_label_loss(logits, targets, "none", None, "mean")
    yield "targets"
    loss, *kept = op.pseudo_label_loss(logits, None, "inverse", None, "mean")
    op.pseudo_label_loss_backward(loss, logits, "mean", *kept)
    yield "inverse"


def _label_map(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    op.label_map(make(64, 27, 80, 80), [320, 320])
    yield "320 x 320"


CALLS = {
    "overlap_sample": _overlap_sample,
    "pixel_similarity": _pixel_similarity,
    "overlap_similarity": _overlap_similarity,
    "region_pool": _region_pool,
    "pseudo_label_loss": _pseudo_label_loss,
    "label_map": _label_map,
}
"""Per operation: calls that launch every one of its kernels, and yield the name of each."""


def _accumulator(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of the type that sums have."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(shape, dtype=dtype)


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
    with _catching_launches(variant.arch) as caught, ExitStack() as patches:
        if variant.wide:
            patches.enter_context(
                mock.patch.object(_triton.load_module("launch"), "LARGEST_IMAGE", 0)
            )
        for name, call in CALLS.items():
            for case in call(_triton.load_module(name), make, channels_last):
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
