"""Public figures of GPUs, for predictions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What a vendor says of a GPU.

    Attributes:
        name: as it is sold.
        architecture: what kernels are compiled for, as in the static audit.
        bandwidth: of its memory, in 10^9 bytes a second.
        multiprocessors: how many it has.
        clock: the highest, in 10^9 a second.
        tensor: tf32 operations of its tensor cores without sparsity, in 10^12 a second.
        warps: that a multiprocessor can hold.
        cache: of the second level, in MB.
        source: kind of document.
    """

    name: str
    architecture: str
    bandwidth: float
    multiprocessors: int
    clock: float
    tensor: float
    warps: int
    cache: int
    source: str

    @property
    def scalar(self) -> float:
        """float32 operations outside tensor cores, in 10^12 a second: 128 cores, 2 a clock."""
        cores = 64 if self.architecture == "sm_80" else 128
        return 2 * cores * self.multiprocessors * self.clock / 1e3

    @property
    def exponentials(self) -> float:
        """exp2 of the special function units, in 10^12 a second: 16 a clock."""
        return 16 * self.multiprocessors * self.clock / 1e3


SHEET = "vendor's data sheet"
PAPER = "vendor's architecture paper"

DEVICES = {
    device.name: device
    for device in (
        Device("A100 80GB SXM", "sm_80", 2039, 108, 1.41, 156, 64, 40, SHEET),
        Device("RTX 3090", "sm_86", 936, 82, 1.695, 35.6, 48, 6, PAPER),
        Device("L40S", "sm_89", 864, 142, 2.52, 183, 48, 96, SHEET),
        Device("RTX 4090", "sm_89", 1008, 128, 2.52, 82.6, 48, 72, PAPER),
        Device("H100 SXM", "sm_90", 3350, 132, 1.98, 494, 64, 50, SHEET),
        Device("H200 SXM", "sm_90", 4800, 132, 1.98, 494, 64, 50, SHEET),
        Device("B200 SXM", "sm_100", 7700, 148, 1.965, 1100, 64, 126, SHEET),
        Device("RTX 5090", "sm_120", 1792, 170, 2.41, 104.8, 48, 96, PAPER),
    )
}
"""Rounded as published. Bandwidth and clock are peaks: no kernel reaches them for long."""
