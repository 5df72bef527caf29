"""What keeps DenseSiam from collapsing: both guards, each alone, and none.

    python examples/collapse.py --output outputs/collapse

trains four small models on nine photographs, about a minute in all on two cores. Each has the pixel
loss only (PixSim), on a frozen backbone, and starts from the same weights with the same images.
They differ in the stop-gradient and in the normalisation at the end of the projector. The folder
gets ``collapse.png`` and ``collapse.json``; docs/collapse.md says what they show.
"""

import argparse
import json
import logging
import os
import time
import warnings

os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # see densesiam.cli

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure

from densesiam.data import SegmentationViews
from densesiam.data.modules.two_views import SegmentationData
from densesiam.methods import DenseSiamSegmentation
from densesiam.training.monitor import LIMITS, CollapseMonitor, balanced_floor

NUM_CLASSES = 12
CASES = {
    "both": (True, True),
    "stop-gradient only": (True, False),
    "normalisation only": (False, True),
    "neither": (False, False),
}

# The demo's network, which configs/demo.yaml explains.
ENCODER = {
    "backbone": "tf_efficientnet_lite0",
    "weights": "efficientnet-lite0",
    "strides": (4, 8, 16, 32),
    "channels": 64,
    "normalize_stages": True,
    "backbone_lr_factor": 0.0,
}

SHOWN = {
    "similarity/loss": "loss (nats)",
    "z/usage_perplexity": f"categories in use, of {NUM_CLASSES}",
    "z/agreement": "pixels whose category agrees",
    "z/std": "spread of z",
    "z/effective_rank": "effective rank of z",
    "gradient_norm/projector": "gradient of the projector",
}


class History(Callback):
    """Keep each measurement of a monitor.

    Args:
        monitor: the monitor.
    """

    def __init__(self, monitor: CollapseMonitor) -> None:
        self.monitor = monitor
        self.measured: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Take what was measured in this step, if it was."""
        step = trainer.global_step - 1
        if step % self.monitor.every_n_steps == 0:
            self.measured.append({"step": step, **self.monitor.latest})


def train(
    stop_gradient: bool, normalize_z: bool, steps: int, encoder: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Train one model.

    Returns:
        ``history``, the monitor's measurements; ``findings``, what it warned of; ``seconds``.
    """
    L.seed_everything(seed, verbose=False)
    model = DenseSiamSegmentation(
        num_classes=NUM_CLASSES,
        aux_classes=None,
        pseudo_label_weight=0.0,
        region_weight=0.0,
        hidden_channels=64,
        lr=0.05,
        stop_gradient=stop_gradient,
        normalize_z=normalize_z,
        **encoder,
    )
    views = SegmentationViews(resize=144, crop=None, size=(96, 128))
    data = SegmentationData(
        train="samples", views=views, batch_size=8, samples_per_epoch=8 * steps, seed=seed
    )
    monitor = CollapseMonitor(every_n_steps=max(1, steps // 30))
    history = History(monitor)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[monitor, history],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, data)
    return {
        "history": history.measured,
        "findings": list(monitor.findings.values()),
        "seconds": time.perf_counter() - start,
    }


def plot(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the measurements of all runs, one panel a metric."""
    limits = {limit.metric: limit.value for limit in LIMITS}
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (metric, title) in zip(axes.flat, SHOWN.items(), strict=True):
        for (name, run), style in zip(runs.items(), ("-", "--", "-.", ":"), strict=True):
            steps = [measured["step"] for measured in run["history"]]
            values = [measured[metric] for measured in run["history"]]
            axis.plot(steps, values, style, label=name, linewidth=1.8)
        limit = limits.get(metric.split("/")[1])
        if metric == "similarity/loss":
            limit = 0.5 * balanced_floor(NUM_CLASSES)
        if limit is not None:
            axis.axhline(limit, color="grey", linewidth=0.8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_ylim(bottom=0)
    figure.supxlabel("step", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=90)


def run(output: Path, steps: int = 60, encoder: dict[str, Any] = ENCODER, seed: int = 0) -> None:
    """Train all cases, print a line for each, and write the files."""
    output.mkdir(parents=True, exist_ok=True)
    runs = {}
    for name, (stop_gradient, normalize_z) in CASES.items():
        runs[name] = train(stop_gradient, normalize_z, steps, encoder, seed)
        last = runs[name]["history"][-1]
        findings = "; ".join(runs[name]["findings"]) or "none"
        print(
            f"{name:20} loss {last['similarity/loss']:.2f}, "
            f"categories {last['z/usage_perplexity']:.1f}, spread {last['z/std']:.2f}, "
            f"{runs[name]['seconds']:.0f} s, findings: {findings}",
            flush=True,
        )
    (output / "collapse.json").write_text(json.dumps(runs, indent=1) + "\n")
    plot(runs, output / "collapse.png")
    print(f"wrote {output / 'collapse.png'} and {output / 'collapse.json'}")


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/collapse"))
    parser.add_argument("--steps", type=int, default=60, help="of each of the four trainings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for hint in ("num_workers", "LeafSpec", "in eval mode"):  # Lightning's; all is as meant
        warnings.filterwarnings("ignore", message=f".*{hint}")
    run(options.output, options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
