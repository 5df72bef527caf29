"""Trainings of 50 steps in float64 whose every input is exact, so that their losses can be kept.

Neither torch's nor timm's random numbers are in them: their bits differ between processors and
versions.
"""

import math

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from densesiam.methods import DenseSiamPretraining, DenseSiamSegmentation, PiCIE
from densesiam.transfer import SegmentationTransfer
from densesiam.transfer.probes import LinearClassificationProbe, LinearSegmentationProbe

STEPS = 50
# How far the twin's weights are off, as a share of them: far above float64's rounding, and small
# enough for its losses to move in proportion.
NUDGE = 2.0**-30

_BACKBONE = {"backbone": "test_byobnet", "strides": (4,), "fpn": False}

METHODS = {
    "segmentation": lambda: DenseSiamSegmentation(
        num_classes=5,
        aux_classes=12,
        hidden_channels=8,
        region_start=0.5,
        schedule="cosine",
        warmup_epochs=2,
        lr=0.05,
        **_BACKBONE,
    ),
    "pretraining": lambda: DenseSiamPretraining(
        grid=3,
        num_regions=5,
        hidden_channels=12,
        predictor_channels=6,
        region_channels=8,
        region_start=5,
        base_lr=0.5,
        **_BACKBONE,
    ),
    "picie": lambda: PiCIE(num_classes=4, lr=0.02, **_BACKBONE),
    "transfer segmentation": lambda: SegmentationTransfer(
        classes=["a", "b", "c"],
        head="linear",
        milestones=[30],
        warmup_steps=5,
        max_steps=STEPS,
        lr=0.02,
        **_BACKBONE,
    ),
    "probe segmentation": lambda: LinearSegmentationProbe(
        classes=["a", "b", "c"],
        backbone="test_byobnet",
        strides=(4,),
        schedule="cosine",
        max_steps=STEPS,
        lr=0.02,
    ),
    "probe classification": lambda: LinearClassificationProbe(
        classes=["a", "b"], backbone="test_byobnet", stride=4, max_steps=STEPS, lr=0.02
    ),
}


def _numbers(rng, *shape):
    """Evenly spread in [-1, 1), with the same bits everywhere."""
    return torch.from_numpy(rng.integers(-(2**20), 2**20, shape) / 2**20)


def _fill(model, nudge):
    """Give every parameter a value that no library's initialisation decides."""
    rng, signs = np.random.default_rng(1), np.random.default_rng(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = _numbers(rng, *parameter.shape)
            if parameter.ndim > 1:
                values *= 2.0 ** -round(math.log2(parameter[0].numel()) / 2)
            else:
                values = values / 8 + name.endswith("weight")
            off = torch.from_numpy(signs.choice([-nudge, nudge], parameter.shape))
            parameter.copy_(values * (1 + off))


def _items(name):
    rng = np.random.default_rng(0)
    for i in range(8):
        if name in ("segmentation", "pretraining", "picie"):
            left = 4.0 + i
            yield {
                "view1": _numbers(rng, 3, 32, 32) * 2,
                "view2": _numbers(rng, 3, 32, 32) * 2,
                "crop1": torch.tensor([left, 8, left + 48, 56], dtype=torch.float64),
                "crop2": torch.tensor([0, 0, 64, 64], dtype=torch.float64),
                "flip1": i % 2 == 1,
                "flip2": False,
                "index": i,
            }
        elif name == "probe classification":
            yield {"image": _numbers(rng, 3, 32, 32) * 2, "label": i % 2, "index": i}
        else:
            label = torch.from_numpy(rng.integers(0, 3, (32, 32)))
            yield {"image": _numbers(rng, 3, 32, 32) * 2, "label": label, "index": i}


class _Data(L.LightningDataModule):
    def __init__(self, name):
        super().__init__()
        self.items = list(_items(name))

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=4)


class _Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def train(name, folder, nudge=0.0):
    """Train a method for 50 steps.

    Args:
        name: of `METHODS`.
        folder: where Lightning may write.
        nudge: how far off to start, as a share of each weight.

    Returns:
        The method, and the loss of each step.
    """
    # In float64 from the start: values must not be rounded to float32 on their way.
    model = METHODS[name]().double()
    _fill(model, nudge)
    losses = _Losses()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true",
        max_epochs=STEPS // 2,
        callbacks=[losses],
        default_root_dir=folder,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(0)
    trainer.fit(model, datamodule=_Data(name))
    return model, losses.losses
