"""What a run says while it trains, and the summary that it leaves."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from densesiam._writing import write_json
from densesiam.training.console import first_process, say
from densesiam.training.lock import Lock
from densesiam.training.unreadable import UnreadableImages

SUMMARY = "summary.json"
_RUNNING, _FINISHED = "running", "finished"


class RunReport(Callback):
    """Tell each epoch in one line, and keep all of them in ``summary.json``.

    The file is written anew after every epoch, so that a run that was cut short has one too. It
    holds ``state`` (running, finished, interrupted or failed; killed, see `note_killed`),
    ``precision``, ``seconds`` of training, ``unreadable`` (see `UnreadableImages`), and ``epochs``:
    for each its number from 1, means of all ``train/`` scalars, the latest ``val/`` scalars,
    seconds and images per second. A resumed run goes on where its checkpoint stood.

    Args:
        path: the file.
        unreadable: knows which images could not be read.
    """

    def __init__(self, path: Path, unreadable: UnreadableImages | None = None) -> None:
        self.path = path
        self.unreadable = unreadable
        self.epochs: list[dict[str, float]] = []
        self._images = 0
        self._start = self._end = 0.0
        self._begun = False
        self._precision = ""
        self._began = (0, 0.0)  # batches and time when this process began to train

    @property
    def seconds(self) -> float:
        """Time from the start of the epoch to the end of its latest batch."""
        return self._end - self._start

    @property
    def images_per_second(self) -> float:
        """Speed of training in this epoch, loading included, over all processes."""
        return self._images / max(self.seconds, 1e-9)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember what had been trained before, and what is computed with."""
        self._precision = str(trainer.precision)
        self._began = (_batches(trainer), time.perf_counter())

    def time_left(self, trainer: L.Trainer) -> str:
        """How long the rest of the run will take at its speed so far, as hours:minutes:seconds."""
        batches, start = self._began
        done = _batches(trainer)
        total = max(trainer.max_epochs or 0, 0) * trainer.num_training_batches
        if done <= batches or not total < math.inf:
            return "?"
        each = (time.perf_counter() - start) / (done - batches)
        return str(timedelta(seconds=round(each * max(total - done, 0))))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._images = 0
        self._start = self._end = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open the report: there is a run to tell of."""
        if not self._begun and trainer.is_global_zero:
            self._write(_RUNNING)
        self._begun = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the images, and stop the clock until the next batch."""
        self._images += len(batch["index"]) * trainer.world_size
        self._end = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch to the report, the file and the log, and print it."""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith(("_step", "_epoch"))  # the same names with a suffix
        }
        epoch = {
            "epoch": trainer.current_epoch + 1,
            **metrics,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }
        self.epochs.append(epoch)
        if trainer.logger is not None:
            speed = {"images_per_second": epoch["images_per_second"]}
            trainer.logger.log_metrics(speed, step=trainer.global_step - 1)
        if trainer.is_global_zero:
            self._write(_RUNNING)
            _print(trainer, describe_epoch(epoch, trainer.max_epochs, loss_names(pl_module)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the report."""
        self._begun = False
        if trainer.is_global_zero:
            self._write(_FINISHED)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the report of a run that was cut short."""
        if trainer.is_global_zero and self._begun:
            cut_short = isinstance(exception, KeyboardInterrupt)
            with suppress(OSError):  # of a full disk the first error is the one to tell
                self._write("interrupted" if cut_short else "failed")

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, for checkpoints."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epochs of a checkpoint."""
        epochs = state_dict["epochs"]
        # Earlier versions counted from 0.
        first = 1 - int(epochs[0]["epoch"]) if epochs else 0
        self.epochs = [{**epoch, "epoch": epoch["epoch"] + first} for epoch in epochs]

    def _write(self, state: str) -> None:
        write_json(
            self.path,
            {
                "state": state,
                "precision": self._precision,
                "seconds": sum(epoch["seconds"] for epoch in self.epochs),
                **({"unreadable": self.unreadable.summary()} if self.unreadable else {}),
                "epochs": self.epochs,
            },
        )


def note_killed(folder: Path, wait: bool = False) -> None:
    """Correct the summary of a run that says "running", where nothing is at work any more.

    A process that was killed, or lost its power, could not say so. Whoever holds the folder's lock
    knows that it is gone, and writes the state ``killed``, with ``last_heard_of``: when the process
    touched its lock or wrote the summary last, in ISO 8601. So it does for one whose disk was too
    full to say that it failed. Nothing else is changed, and nothing where the folder cannot be
    written or a process is at work.

    Args:
        folder: of the run; there may be none.
        wait: see `Lock`.
    """
    path = folder / SUMMARY
    if not first_process() or _read(path).get("state") != _RUNNING:
        return
    try:
        lock = Lock(folder, wait)
    except (ValueError, OSError):
        return
    try:
        if (content := _read(path)).get("state") != _RUNNING:
            return  # it ended while it was waited for
        heard = max(lock.heard or 0.0, path.stat().st_mtime)
        told = datetime.fromtimestamp(heard).astimezone().isoformat(timespec="seconds")
        say(f"{folder}: the run was killed; it was last heard of at {told}")
        with suppress(OSError):
            write_json(path, {**content, "state": "killed", "last_heard_of": told})
    finally:
        lock.release()


def note_finished(folder: Path) -> None:
    """Correct the summary of a run whose last checkpoint is complete.

    Its process may have ended before it could say so: by a kill, or as the disk was full.

    Args:
        folder: of the run.
    """
    content = _read(folder / SUMMARY)
    if not first_process() or content.get("state") in (None, _RUNNING, _FINISHED):
        return  # where it is at work, it trains on
    content.pop("last_heard_of", None)
    with suppress(OSError):
        write_json(folder / SUMMARY, {**content, "state": _FINISHED})


def _read(summary: Path) -> dict[str, Any]:
    """A run's summary; empty where there is none."""
    try:
        content = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _batches(trainer: L.Trainer) -> int:
    """Batches that have been trained on, over all epochs."""
    return int(trainer.fit_loop.total_batch_idx) + 1


class ProgressLines(Callback):
    """Now and then a line within an epoch, where no bar is drawn.

    Args:
        report: knows the speed and the time left.
        seconds: from one line to the next.
    """

    def __init__(self, report: RunReport, seconds: float = 60.0) -> None:
        self._report = report
        self.seconds = seconds
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Print the line, where it is time and the epoch's own is not about to come."""
        now = time.perf_counter()
        if now - self._last < self.seconds or trainer.is_last_batch:
            return
        self._last = now
        if trainer.is_global_zero:
            parts = [
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                f"batch {i + 1}/{trainer.num_training_batches}",
                *(f"{name} {value}" for name, value in _latest(trainer, pl_module).items()),
                f"{self._report.images_per_second:.0f} images/s",
                f"{self._report.time_left(trainer)} left",
            ]
            print("  ".join(parts), flush=True)


def _latest(trainer: L.Trainer, module: L.LightningModule) -> dict[str, str]:
    """The losses of the latest step, by name."""
    logged = trainer.callback_metrics
    return {
        name: f"{float(logged[f'train/{name}_step']):.3f}"
        for name in loss_names(module)
        if f"train/{name}_step" in logged
    }


# Without a bar, tqdm would not cut the line to the terminal's width.
_BAR = "{desc}{n_fmt}/{total_fmt}{postfix} {bar}"


class ProgressBar(TQDMProgressBar):
    """A bar for each epoch: the time left of the run, images per second, losses of the latest step.

    Narrow terminals cut off its end, so what matters most comes first.

    Args:
        report: knows the speed.
    """

    def __init__(self, report: RunReport) -> None:
        super().__init__()
        self._report = report

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        return {
            "left": self._report.time_left(trainer),
            "images/s": f"{self._report.images_per_second:.0f}",
            **_latest(trainer, pl_module),
        }

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Begin an epoch's bar; Lightning's counts from 0."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, batch"
        )

    def init_train_tqdm(self) -> Tqdm:
        """A bar in what words leave of the line."""
        bar = super().init_train_tqdm()
        bar.bar_format = _BAR
        return bar


def loss_names(module: L.LightningModule) -> list[str]:
    """Names of a method's losses: the total, then its parts."""
    return ["loss", *getattr(module, "weights", {})]


def describe_epoch(epoch: dict[str, float], max_epochs: int | None, losses: Sequence[str]) -> str:
    """One line about an epoch, from its entry in the report."""
    width = len(str(max_epochs))
    parts = [f"epoch {epoch['epoch']:>{width}}/{max_epochs}"]
    parts += [f"{name} {epoch[f'train/{name}']:.3f}" for name in losses if f"train/{name}" in epoch]
    if "train/usage_perplexity" in epoch:
        parts.append(f"categories used {epoch['train/usage_perplexity']:.1f}")
    if "val/miou" in epoch:
        parts.append(f"mIoU {100 * epoch['val/miou']:.1f}")
        parts.append(f"accuracy {100 * epoch['val/accuracy']:.1f}")
    parts.append(f"{epoch['images_per_second']:.0f} images/s")
    return "  ".join(parts)


def _print(trainer: L.Trainer, line: str) -> None:
    """Print a line without tearing the progress bar apart."""
    bar = trainer.progress_bar_callback
    if bar is None:
        print(line, flush=True)
    else:
        bar.print(line)
