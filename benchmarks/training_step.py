"""A whole training step on each backend: ``python -m benchmarks.training_step [--json FILE]``.

Two steps of the segmentation method on random images: the demo's (EfficientNet-Lite0, frozen,
16 views of 96 x 128) and the paper's network (ResNet-18 with FPN, 27 and 128 categories, 320 x 320)
at the batch that fits the machine. Each is timed whole, interleaved over the backends, and its time
is then divided among its parts by PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import DEVICE
from benchmarks.machine import describe_machine
from benchmarks.measure import Call, time_side_by_side
from benchmarks.run import BACKENDS
from densesiam import ops
from densesiam.methods import DenseSiamSegmentation
from densesiam.ops._backends import missing


def demo_model() -> DenseSiamSegmentation:
    """The demo's network; random weights take the same time."""
    return DenseSiamSegmentation(
        num_classes=12,
        aux_classes=None,
        region_start=0,
        hidden_channels=64,
        backbone="tf_efficientnet_lite0",
        strides=[8, 16, 32],
        channels=64,
        normalize_stages=True,
        backbone_lr_factor=0.0,
    )


def paper_model() -> DenseSiamSegmentation:
    """The paper's network, with RegionSim from the start."""
    return DenseSiamSegmentation(num_classes=27, aux_classes=128, region_start=0)


STEPS = {
    "demo, 16 x 96 x 128": (demo_model, 16, 96, 128),
    "R18-FPN, 4 x 320 x 320": (paper_model, 4, 320, 320),
}
TINY = (2, 32, 32)
"""Images for the emulator and Triton's interpreter, which take minutes for a whole step."""


def make_batch(batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Random views with the geometry of training: view 1 is a crop of view 2, perhaps mirrored."""
    scale = torch.tensor([width, height, width, height])
    corner = torch.rand(batch, 2) * 0.5
    crop1 = torch.cat([corner, corner + 0.5], dim=1) * scale
    views = {f"view{i}": torch.randn(batch, 3, height, width) for i in (1, 2)}
    crops = {"crop1": crop1, "crop2": torch.tensor([0.0, 0, 1, 1]).expand(batch, 4) * scale}
    flips = {"flip1": torch.rand(batch) < 0.5, "flip2": torch.zeros(batch, dtype=torch.bool)}
    return {name: t.to(DEVICE) for name, t in (views | crops | flips).items()}


def step(model: DenseSiamSegmentation, batch: dict[str, torch.Tensor], backend: str) -> None:
    """Forward and backward of all losses, in named parts."""
    record = torch.profiler.record_function
    model.zero_grad()
    with ops.use_backend(backend):
        features1, features2, weight = model.aligned_features(batch)
        with record("losses"):
            losses = model.losses(features1, features2, weight)[0]
            total = sum(model.weights[name] * loss for name, loss in losses.items())
        with record("backward"):
            total.backward()  # type: ignore[union-attr] # Lightning's type allows None


def _round(
    model: DenseSiamSegmentation, batch: dict[str, torch.Tensor], backend: str, _number: int
) -> None:
    step(model, batch, backend)


def profile(model: DenseSiamSegmentation, batch: dict[str, torch.Tensor], backend: str) -> Any:
    """Milliseconds by operator, the most expensive first."""
    with torch.profiler.profile() as profiler:
        step(model, batch, backend)
    events = [e for e in profiler.key_averages() if e.self_cpu_time_total > 0]
    events.sort(key=lambda e: -e.self_cpu_time_total)
    return {e.key: round(e.self_cpu_time_total / 1e3, 3) for e in events[:12]}


def measure(rounds: int, tiny: bool = False) -> dict[str, dict[str, Any]]:
    """Time the steps on every backend that can run here.

    Args:
        rounds: measured rounds.
        tiny: with the images of `TINY` instead.

    Returns:
        By step and backend: ``ms`` (median and quartiles) and ``operators``, the milliseconds of
        the most expensive ones.
    """
    backends = [b for b in (*BACKENDS, "reference") if missing(b) is None]
    results: dict[str, dict[str, Any]] = {}
    for name, (build, *shape) in STEPS.items():
        model = build().to(DEVICE)
        batch = make_batch(*(TINY if tiny else shape))
        runs = {b: Call(functools.partial(_round, model, batch, b)) for b in backends}
        timings = time_side_by_side(runs, rounds)
        results[name] = {
            b: {"ms": vars(timings[b][1]), "operators": profile(model, batch, b)} for b in backends
        }
    return results


def render(results: dict[str, dict[str, Any]]) -> str:
    """The steps as text."""
    lines = []
    for name, backends in results.items():
        lines.append(name)
        for backend, step in backends.items():
            ms = step["ms"]
            lines.append(f"  {backend}: {ms['median']:.0f} ms ({ms['low']:.0f}-{ms['high']:.0f})")
            lines += [f"    {value:8.1f}  {name}" for name, value in step["operators"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--tiny", action="store_true", help="two images of 32 x 32: no measurement")
    parser.add_argument("--json", type=Path, help="write machine, versions and all numbers there")
    args = parser.parse_args()
    torch.manual_seed(0)
    results = measure(args.rounds, args.tiny)
    print(render(results))
    if args.json:
        report = {
            "machine": describe_machine(),
            "command": " ".join(sys.argv[1:]),
            "steps": results,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
