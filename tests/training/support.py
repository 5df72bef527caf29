"""Trainings: by a command, or without one, with as many steps as are wanted."""

import json
import multiprocessing
import os
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
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


class Break(Callback):
    """Make something not finite before a step, in one of three ways."""

    def __init__(self, step, how, value=float("nan")):
        self.step, self.how, self.value = step, how, value

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        if trainer.global_step != self.step:
            return
        if self.how == "input":
            batch["view1"].fill_(self.value)
        if self.how == "weight":
            with torch.no_grad():
                next(model.projector.parameters()).view(-1)[0] = self.value

    def on_before_optimizer_step(self, trainer, model, optimizer):
        if trainer.global_step == self.step and self.how == "gradient":
            next(model.projector.parameters()).grad.view(-1)[0] = self.value


def send(number):
    """Send this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def send_to_all(number):
    """Send this process and those that load its data a signal, as a queue or a terminal does."""

    def act():
        processes = [*(child.pid for child in multiprocessing.active_children()), os.getpid()]
        sender = os.fork()
        if sender == 0:
            for process in processes:
                os.kill(process, number)
            os._exit(0)
        os.waitpid(sender, 0)
        if processes[1:]:
            time.sleep(0.2)  # the loader is to find them dead, if they are

    return act


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
