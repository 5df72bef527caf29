"""Runs that are watched step by step, and stopped."""

import signal

import pytest
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from densesiam.training.divergence import Finite
from densesiam.training.interrupts import StopAndSave


@pytest.fixture(autouse=True)
def interruptible():
    """What a shell starts in the background ignores SIGINT, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Lightning's way to further processes, which would start pytest again and wait for it."""

    def fail(self):
        raise AssertionError("what should have been refused would begin in several processes")

    monkeypatch.setattr(_SubprocessScriptLauncher, "_call_children_scripts", fail)


@pytest.fixture
def steps(monkeypatch):
    """The loss of each step that is trained, and what to do before one."""

    class Steps(list):
        before = {}

    seen = Steps()
    start, end = StopAndSave.on_train_batch_start, Finite.on_train_batch_end

    def batch_start(self, trainer, model, batch, batch_idx):
        start(self, trainer, model, batch, batch_idx)
        if act := seen.before.pop(trainer.global_step, None):
            act()

    def batch_end(self, trainer, model, outputs, *args):
        seen.append(outputs["loss"].item())
        end(self, trainer, model, outputs, *args)

    monkeypatch.setattr(StopAndSave, "on_train_batch_start", batch_start)
    monkeypatch.setattr(Finite, "on_train_batch_end", batch_end)
    return seen
