"""What the model of `benchmarks.processor` says of kernels that others have measured.

    python -m benchmarks.published

The kernels are written anew in ``published.cu`` from the sources' descriptions, compiled here and
executed on small inputs; the launches are those of the sources.

The time from a block's end to the next block's start in its place is nowhere published. It was set
from these kernels (0 makes the padded transpose a third too fast); everything else in the model is
from other sources.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.processor import PROCESSORS, simulate, warp_traces
from tools.sass.machine import Launch, Machine
from tools.sass.program import compiled, read_program

SOURCE = Path(__file__).with_suffix(".cu")
TRANSPOSES = "yencal.github.io/gpu-matrix-transpose-optimization, 32768 x 32768 floats"
SUMS = "github.com/simveit/effective_reduction, kernels 2 and 3, 2^30 integers"
STRIDES = "yencal.github.io/gpu-parallel-reduction, 1024 blocks of 512"
SIDE, SMALL_SIDE = 32768, 2048
INTEGERS = 1 << 30
SMALL = 1 << 24  # numbers of the inputs that blocks are executed on
BLOCKS = 8


@dataclass(frozen=True)
class Measurement:
    """A published time on an H100 SXM.

    Attributes:
        kernel: its name in ``published.cu``.
        block: threads in x and y.
        grid: blocks in x and y of the executed launch.
        arguments: after the two pointers.
        blocks: of the measured launch.
        microseconds: measured.
        source: of the measurement.
    """

    kernel: str
    block: tuple[int, int]
    grid: tuple[int, int]
    arguments: bytes
    blocks: int
    microseconds: float
    source: str


def _transpose(name: str, rows: int, milliseconds: float) -> Measurement:
    tiles = SMALL_SIDE // 32
    size = struct.pack("<i", SMALL_SIDE)
    blocks = (SIDE // 32) ** 2
    return Measurement(
        name, (32, rows), (tiles, tiles), size, blocks, 1e3 * milliseconds, TRANSPOSES
    )


def _sum(name: str, each: int, gigabytes: float) -> Measurement:
    count = SMALL // 4
    microseconds = 4 * INTEGERS / gigabytes / 1e3
    size = struct.pack("<Q", count)
    grid = (count // (512 * each), 1)
    blocks = -(-INTEGERS // (512 * each))
    return Measurement(name, (512, 1), grid, size, blocks, microseconds, SUMS)


def _strides(name: str, each: int, gigabytes: float) -> Measurement:
    size = struct.pack("<i", SMALL // each)
    microseconds = 4 * SMALL / gigabytes / 1e3
    return Measurement(name, (512, 1), (1024, 1), size, 1024, microseconds, STRIDES)


MEASUREMENTS = (
    _transpose("transpose_conflicts", 32, 8.6235),
    _transpose("transpose_padded", 32, 5.0724),
    _transpose("transpose_coarse2", 16, 3.6014),
    _transpose("transpose_coarse4", 8, 3.0984),
    _sum("sum_block", 1, 882.823),
    _sum("sum_batches", 12, 3226.86),
    _strides("sum_strides1", 1, 2300),
    _strides("sum_strides4", 4, 3150),
)


def predicted(measurement: Measurement, architecture: str = "sm_90") -> float:
    """Microseconds by the model."""
    source, target = (np.ones(SMALL + 64, np.int32) for _ in range(2))
    pointers = (array.ctypes.data + -array.ctypes.data % 256 for array in (source, target))
    arguments = struct.pack("<QQ", *pointers) + measurement.arguments
    program = read_program(compiled(SOURCE, architecture), measurement.kernel)
    launch = Launch((*measurement.grid, 1), (*measurement.block, 1), arguments)
    blocks = [number * launch.blocks // BLOCKS for number in range(BLOCKS)]
    _, steps = Machine(program, dry=True).run(launch, blocks, trace=True)
    traces = warp_traces(program, steps, BLOCKS)
    processor = PROCESSORS[architecture]
    return simulate(program, launch, traces, processor, blocks=measurement.blocks).microseconds


def comparisons() -> Iterator[tuple[Measurement, float]]:
    """Every measurement, and what is predicted."""
    for measurement in MEASUREMENTS:
        yield measurement, predicted(measurement)


def main() -> None:
    """Print them."""
    print(f"{'kernel':22}{'measured us':>12}{'predicted us':>14}{'off':>7}  source")
    for measurement, microseconds in comparisons():
        off = microseconds / measurement.microseconds - 1
        print(
            f"{measurement.kernel:22}{measurement.microseconds:12.1f}{microseconds:14.1f}"
            f"{off:+7.0%}  {measurement.source}"
        )


if __name__ == "__main__":
    main()
