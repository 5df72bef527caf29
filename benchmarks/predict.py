"""``python -m benchmarks predict``: what a GPU cannot be faster than.

The floor of an operation on a device is the longest of three times, and the launches besides:

- its mandatory bytes at the memory's full bandwidth (a second pass that finds them in the cache may
  be faster, so tensors must be larger than the cache for this to hold: ``--batch``);
- its matrix products: half types on tensor cores, at the rate of tf32 in which our kernels compute
  them; float32 on the other cores;
- its exponentials on the special function units.

The static audit (tools/audit.json) then says whether the kernels hold enough in flight to come
near the floor. By Little's law, bandwidth times latency must be under way at any moment; a kernel's
registers bound the warps that fit, and each thread is counted with one 16-byte load if the compiler
made such loads, else with one element: an underestimate, as most threads have several under way.

With a result of a GPU (``--measured FILE``) the measured times stand beside the predicted ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import ops
from benchmarks.devices import DEVICES, Device
from benchmarks.problem import KernelNames, Problem, Setting, Shape
from benchmarks.results import Results
from densesiam.ops._operations import OPERATIONS

AUDIT = Path(__file__).parents[1] / "tools" / "audit.json"
LATENCY = 0.7e-6  # seconds from a load to its value, under load: the order that is published
LAUNCH = 2e-6  # seconds that a kernel takes at the least, in a graph
REGISTERS = 65536  # of a multiprocessor
WARP = 32


@dataclass(frozen=True)
class Floor:
    """Prediction for one operation, shape, setting and device, forward and backward.

    Attributes:
        op: the operation.
        name: the shape's name.
        shape: the shape in words.
        layout: of the maps.
        dtype: of the maps.
        device: its name.
        milliseconds: no kernel can take less.
        bound: what it is that takes so long.
        launches: kernels of forward and backward.
        registers: of the kernel that has the most.
        warps: resident on a multiprocessor, of the kernel with the fewest.
        in_flight: bytes under way on the device, at the least, as a share of what is needed.
        measured: milliseconds of our backends, where there is a result.
    """

    op: str
    name: str
    shape: str
    layout: str
    dtype: str
    device: str
    milliseconds: float
    bound: str
    launches: int
    registers: int | None
    warps: int | None
    in_flight: float | None
    measured: dict[str, float]


def floors(
    devices: Sequence[Device], batch: int, measured: Results | None = None
) -> Iterator[Floor]:
    """Predict every operation at the method's own shapes.

    Args:
        devices: the GPUs.
        batch: images.
        measured: a result, whose times are given for the device that its machine names.
    """
    audit = json.loads(AUDIT.read_text())
    for name, module in ops.MODULES.items():
        for shape in (shape for shape in module.SHAPES if shape.own):
            for setting in _settings(name, batch):
                problem = module.problem(shape, setting)
                for device in devices:
                    yield _floor(problem, shape, setting, device, audit, measured)


def _settings(op: str, batch: int) -> list[Setting]:
    if OPERATIONS[op].integers:
        return [Setting(batch)]
    return [
        Setting(batch, dtype, channels_last)
        for dtype in (torch.float32, torch.float16)
        for channels_last in (False, True)
    ]


def _floor(
    problem: Problem,
    shape: Shape,
    setting: Setting,
    device: Device,
    audit: dict[str, dict[str, dict[str, int]]],
    measured: Results | None,
) -> Floor:
    half = setting.dtype == torch.float16
    seconds = {
        "memory": problem.mandatory_bytes / (device.bandwidth * 1e9),
        "products": problem.products / ((device.tensor if half else device.scalar) * 1e12),
        "exponentials": problem.exponentials / (device.exponentials * 1e12),
    }
    patterns = ops.MODULES[problem.op].cuda_kernels(shape, KernelNames.of(shape, setting))
    bound = max(seconds, key=lambda name: seconds[name])
    launching = LAUNCH * len(patterns)
    found = [
        numbers
        for pattern in patterns
        for name, numbers in audit.get(device.architecture, {}).items()
        if name.startswith(pattern)
    ]
    resident = [_resident_warps(kernel["registers"], device.warps) for kernel in found]
    threads = WARP * device.multiprocessors
    needed = device.bandwidth * 1e9 * LATENCY
    under_way = [
        threads * warps * (16 if kernel["wide_loads"] else setting.itemsize) / needed
        for warps, kernel in zip(resident, found, strict=True)
    ]
    return Floor(
        op=problem.op,
        name=shape.name,
        shape=problem.shape,
        layout=setting.layout,
        dtype=str(setting.dtype).removeprefix("torch."),
        device=device.name,
        milliseconds=1e3 * (seconds[bound] + launching),
        bound="launches" if launching > seconds[bound] else bound,
        launches=len(patterns),
        registers=max((kernel["registers"] for kernel in found), default=None),
        warps=min(resident, default=None),
        in_flight=min(under_way, default=None),
        measured=_measured(problem, setting, device, measured),
    )


def _resident_warps(registers: int, most: int) -> int:
    """Warps of 256-thread blocks that a multiprocessor's registers can hold."""
    a_warp = -(-registers // 8) * 8 * WARP  # registers are handed out by eights
    blocks = REGISTERS // (8 * a_warp)
    return min(8 * blocks, most)


def _measured(
    problem: Problem, setting: Setting, device: Device, measured: Results | None
) -> dict[str, float]:
    """Our times for the same problem, where the result's machine is this device."""
    if measured is None or device.name.split()[0] not in measured.machine["device"]:
        return {}
    wanted = (problem.op, problem.shape, setting.layout, str(setting.dtype)[6:])
    for row in measured.rows:
        if (row.op, row.shape, row.layout, row.dtype) == wanted:
            return {name: row.milliseconds[name].median for name in row.backends}
    return {}


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--devices", nargs="+", choices=DEVICES, default=list(DEVICES), metavar="NAME"
    )
    parser.add_argument("--batch", type=int, default=64, help="images (default 64)")
    parser.add_argument("--measured", type=Path, help="JSON of a run on one of the devices")
    options = parser.parse_args(arguments)
    devices = [DEVICES[name] for name in options.devices]
    measured = Results.read(options.measured) if options.measured else None
    print("PREDICTION, not a measurement: the least time, forward and backward.\n")
    print(
        f"{'device':15}{'operation':19}{'shape':50}{'layout':15}{'type':9}{'floor ms':>9} "
        f"{'bound by':13}{'registers':>9}{'warps':>7}{'in flight':>11}  measured"
    )
    for floor in floors(devices, options.batch, measured):
        share = "-" if floor.in_flight is None else f"{floor.in_flight:.1f}x"
        own = ", ".join(f"{name} {ms:.3f}" for name, ms in floor.measured.items()) or "-"
        shape = f"{floor.name}: {floor.shape}"
        print(
            f"{floor.device:15}{floor.op:19}{shape:50}{floor.layout:15}{floor.dtype:9}"
            f"{floor.milliseconds:9.3f} {floor.bound:13}{floor.registers or '-':>9}"
            f"{floor.warps or '-':>7}{share:>11}  {own}"
        )
    return 0
