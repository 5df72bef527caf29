"""Trainings: by a command, or without one, with as many steps as are wanted."""

import json
import os

import lightning as L
from torch.utils.data import DataLoader

from tests.methods.support import apart, batch
from tests.training.earlier.commands import prepare


def fit(model, callbacks, steps, saves=None, **options):
    """Train for one epoch, on the same two batches over and over."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=callbacks,
        default_root_dir=saves,
        logger=False,
        enable_checkpointing=saves is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, DataLoader(apart(batch(8)) * (steps // 2), batch_size=4))
    return trainer


def send(number):
    """Send this process a signal."""
    return lambda: os.kill(os.getpid(), number)


LONGER = {
    "fit": ["--data.batch_size", "2", "--trainer.max_epochs", "2"],
    "picie": ["--data.batch_size", "2", "--trainer.max_epochs", "2"],
    "pretrain": ["--data.batch_size", "2", "--trainer.max_epochs", "2"],
    "transfer segmentation": ["--data.batch_size", "1", "--model.max_steps", "7"],
}


def command(name, folder):
    """What to type for a training of several epochs that begins or goes on."""
    return [*prepare(name, folder), *LONGER[name], "--ckpt_path", "auto"]


def state(run):
    """What a run's summary says of it."""
    return json.loads((run / "summary.json").read_text())["state"]
