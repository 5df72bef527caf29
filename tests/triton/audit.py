"""What the Triton kernels compile to, for GPUs that need not be here.

    python -m tests.triton.audit                      # every type and layout, for one architecture
    python -m tests.triton.audit --arch 80 90 100 120
    python -m tests.triton.audit --wide               # offsets for images over 2^31 elements

Each operation is called with tensors of the method's own shapes on the meta device. Its launches
are caught and compiled, specialised exactly as they would be with a GPU, but not run. Printed per
kernel: registers, bytes of stack (spilled registers live there), of shared memory, and operations
on bfloat16 that are arithmetic (all arithmetic must be float32 or float64).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from densesiam.ops import _triton

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LAYOUTS = ("planar", "channels_last")


@dataclass(frozen=True)
class Compiled:
    """One kernel of one operation, type, layout and architecture."""

    op: str
    kernel: str
    dtype: str
    layout: str
    arch: int
    registers: int
    stack: int
    shared: int
    bfloat16_arithmetic: list[str]


class Target:
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
def catching_launches(arch: int) -> Iterator[list[Any]]:
    """Compile what is launched inside the block, and collect it instead of running it."""
    caught: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> Any:
        caught.append(run(self, *args, warmup=True, **kwargs))
        return caught[-1]

    driver.set_active(Target(arch))
    JITFunction.run = compile_only
    try:
        yield caught
    finally:
        JITFunction.run = run


Make = Callable[..., Tensor]


def overlap_sample(op: Any, make: Make, channels_last: bool) -> None:
    features, boxes = make(64, 128, 80, 80), torch.empty(64, 4, device="meta")
    op.overlap_sample(features, boxes, [80, 80])
    op.overlap_sample_backward(features, boxes, [80, 80], channels_last)


def pixel_similarity(op: Any, make: Make, channels_last: bool) -> None:
    for kind, channels in (("cosine", 128), ("cross_entropy", 27)):
        p, z = make(64, channels, 6400), make(64, channels, 6400)
        weight = accumulator(p, 64)
        loss, statistics = op.pixel_similarity(p, z, weight, kind, "mean")
        op.pixel_similarity_backward(loss, p, z, weight, statistics, kind, "mean")


def overlap_similarity(op: Any, make: Make, channels_last: bool) -> None:
    for kind, channels, extent in (("cosine", 2048, 7), ("cross_entropy", 256, 56)):
        p, z = make(64, channels, extent, extent), make(64, channels, extent, extent)
        boxes, weight = torch.empty(64, 4, device="meta"), accumulator(p, 64)
        views = p, z, boxes, boxes, weight
        loss, statistics = op.overlap_similarity(*views, [7, 7], kind, "mean")
        op.overlap_similarity_backward(loss, *views, statistics, [7, 7], kind, "mean")


def region_pool(op: Any, make: Make, channels_last: bool) -> None:
    for regions in (27, 128):
        features, logits = make(64, 128, 6400), make(64, regions, 6400)
        out, mass, log_sum = op.region_pool(features, logits)
        op.region_pool_backward(out, mass, features, logits, log_sum, True, True)


def pseudo_label_loss(op: Any, make: Make, channels_last: bool) -> None:
    logits, targets = make(64, 27, 6400), make(64, 27, 6400)
    op.pseudo_label_loss(logits, targets, None, "none", "mean")
    loss, *kept = op.pseudo_label_loss(logits, None, None, "inverse", "mean")
    op.pseudo_label_loss_backward(loss, logits, *kept, "mean")


def label_map(op: Any, make: Make, channels_last: bool) -> None:
    op.label_map(make(64, 27, 80, 80), [320, 320])


CALLS = {
    call.__name__: call
    for call in (
        overlap_sample,
        pixel_similarity,
        overlap_similarity,
        region_pool,
        pseudo_label_loss,
        label_map,
    )
}
"""Per operation: calls that launch every one of its kernels."""


def accumulator(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of the type that sums have."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(shape, dtype=dtype)


def audit(arch: int, dtype: str, layout: str, ops: list[str], wide: bool) -> list[Compiled]:
    """Compile every kernel of some operations for one architecture, type and layout."""

    def make(*shape: int) -> Tensor:
        if layout == "planar":
            return torch.empty(shape, dtype=DTYPES[dtype], device="meta")
        batch, channels, *spatial = shape
        stored = torch.empty(batch, *spatial, channels, dtype=DTYPES[dtype], device="meta")
        return stored.movedim(-1, 1)

    rows = []
    for name in ops:
        op = _triton.load_module(name)
        index_type = (lambda *_: tl.int64) if wide else op.index_type
        with catching_launches(arch) as caught, mock.patch.object(op, "index_type", index_type):
            CALLS[name](op, make, layout == "channels_last")
        for kernel in {k.hash: k for k in caught}.values():
            rows.append(Compiled(name, kernel.name, dtype, layout, arch, **measure(kernel)))
    return rows


def measure(kernel: Any) -> dict[str, Any]:
    """Resources of one compiled kernel, and arithmetic on bfloat16 left in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "registers": usage["REG"],
        "stack": usage["STACK"] + usage["LOCAL"],
        "shared": kernel.metadata.shared,
        "bfloat16_arithmetic": bfloat16_arithmetic(kernel.asm["ttir"] + kernel.asm["ttgir"]),
    }


def bfloat16_arithmetic(ir: str) -> list[str]:
    """Arithmetic on bfloat16 in Triton's IR. Conversions and tensor-core products are none."""
    found = re.findall(r"(?:= |^\s*)\"?((?:arith|math|tt\.reduce)[\w.]*).*bf16", ir, re.MULTILINE)
    return sorted(set(found) - {"arith.extf", "arith.truncf", "arith.constant"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[90])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--layout", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    parser.add_argument("--op", nargs="+", default=list(CALLS), choices=list(CALLS))
    parser.add_argument("--wide", action="store_true", help="64-bit offsets")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = [
        row
        for arch in options.arch
        for dtype in options.dtype
        for layout in options.layout
        for row in audit(arch, dtype, layout, options.op, options.wide)
    ]
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    print("arch  type      layout         registers  stack  shared  kernel")
    for row in rows:
        print(
            f"{row.arch:<5} {row.dtype:<9} {row.layout:<14} {row.registers:>9}  {row.stack:>5}  "
            f"{row.shared:>6}  {row.op}.{row.kernel}{' '.join(['', *row.bfloat16_arithmetic])}"
        )


if __name__ == "__main__":
    main()
