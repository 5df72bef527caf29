"""Signals and the clock: a training that is stopped goes on from the very step."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from densesiam.training.console import Interrupted

# A job's end is announced by TERM, or by USR1 where `sbatch --signal` says so; HUP is the end of a
# terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Signals:
    """What signals ask for: an end after the running step, where there is one.

    Attributes:
        received: the signal that came; None if none did.
        training: whether a step is running, or one will, after which can be stopped. Otherwise, and
            at the second signal, the work is broken off where it is.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.training = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals in the block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.handle()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle(self) -> None:
        """Handle the signals from here on, whoever has done so."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        at_once = self.received is not None or not self.training
        self.received = signal.Signals(number)
        if at_once:
            raise Interrupted(self.received)
        # print() must not be used here: it may be in the middle of printing.
        os.write(2, f"\n{self.received.name}: stopping after this step\n".encode())


class StopAndSave(Callback):
    """Write a checkpoint every so often, and after the step in which a signal came; then stop.

    All processes save and stop after the same step: they ask one another every 20 steps, a single
    process after each.

    Args:
        signals: who receives them.
        path: the checkpoint.
        minutes: from one checkpoint to the next, within epochs; their ends write one anyway.
        began: called before the first step, when nothing can refuse the training any more.
    """

    _ASK_EVERY = 20

    def __init__(
        self, signals: Signals, path: Path, minutes: float, began: Callable[[], None]
    ) -> None:
        self.signals = signals
        self.path = path
        self.seconds = 60 * minutes
        self.began = began
        self._saved_at = 0.0
        self._begun = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and take the signals back from Lightning, which would stop at once."""
        self._saved_at = time.monotonic()
        self.signals.handle()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop between epochs: the end of the last one has left a checkpoint."""
        if self._begun and self._agreed(trainer, save=False)[0]:
            raise Interrupted(self.signals.received)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell of the first step."""
        if not self._begun:
            self._begun = True
            self.began()
            self.signals.training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Save and stop, where it is time.

        Raises:
            Interrupted: a signal came.
        """
        many = trainer.world_size > 1
        if (
            trainer.is_last_batch  # the end of the epoch, which saves and stops itself
            or (i + 1) % trainer.accumulate_grad_batches  # gradients are in no checkpoint
            or (many and (i + 1) // trainer.accumulate_grad_batches % self._ASK_EVERY)
        ):
            return
        stop, save = self._agreed(trainer, time.monotonic() - self._saved_at >= self.seconds)
        if stop or save:
            trainer.save_checkpoint(self.path)
        if stop:
            raise Interrupted(self.signals.received)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the clock back."""
        self._saved_at = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on there is no step to wait for."""
        self.signals.training = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """The same."""
        self.signals.training = False

    def _agreed(self, trainer: L.Trainer, save: bool) -> tuple[bool, bool]:
        """Whether any process has received a signal, and whether any wants to save."""
        received = int(self.signals.received or 0)
        if trainer.world_size == 1 or not dist.is_initialized():
            return bool(received), save
        wanted = torch.tensor([received, int(save)], device=trainer.strategy.root_device)
        dist.all_reduce(wanted, dist.ReduceOp.MAX)
        number, any_save = wanted.tolist()
        if number:
            self.signals.received = signal.Signals(number)
        return bool(number), bool(any_save)
