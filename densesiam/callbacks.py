"""What a run shows while it trains, and what it leaves behind."""

import csv
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, TQDMProgressBar
from PIL import Image
from torch import Tensor

from densesiam import ops
from densesiam.data import (
    Evaluation,
    ImageReadError,
    PredictionImages,
    read_image,
    to_image,
)
from densesiam.evaluation.report import write_prediction_page
from densesiam.methods import Segmenter
from densesiam.visualize import colorize, contact_sheet, legend, overlay

_MOST_LABELS_OF_A_BYTE = 256


class RunReport(Callback):
    """Tell each epoch in one line, and keep all of them in ``summary.json``.

    The file is written anew after every epoch, so that a run that was cut short has one too. It
    holds ``state`` (running, finished, interrupted or failed), ``seconds`` of training, and
    ``epochs``: for each its number, means of all ``train/`` scalars, the latest ``val/`` scalars,
    seconds and images per second. A resumed run goes on where its checkpoint stood.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs: list[dict[str, float]] = []
        self._images = 0
        self._start = self._end = 0.0

    @property
    def seconds(self) -> float:
        """Time from the start of the epoch to the end of its latest batch."""
        return self._end - self._start

    @property
    def images_per_second(self) -> float:
        """Speed of training in this epoch, loading included, over all processes."""
        return self._images / max(self.seconds, 1e-9)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._images = 0
        self._start = self._end = time.perf_counter()

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
            "epoch": trainer.current_epoch,
            **metrics,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }
        self.epochs.append(epoch)
        if trainer.logger is not None:
            speed = {"images_per_second": epoch["images_per_second"]}
            trainer.logger.log_metrics(speed, step=trainer.global_step)
        if trainer.is_global_zero:
            self._write("running")
            _print(trainer, describe_epoch(epoch, trainer.max_epochs, loss_names(pl_module)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the report."""
        if trainer.is_global_zero:
            self._write("finished")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the report of a run that was cut short."""
        if trainer.is_global_zero and trainer.training:
            cut_short = isinstance(exception, KeyboardInterrupt)
            self._write("interrupted" if cut_short else "failed")

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, for checkpoints."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epochs of a checkpoint."""
        self.epochs = list(state_dict["epochs"])

    def _write(self, state: str) -> None:
        write_json(
            self.path,
            {
                "state": state,
                "seconds": sum(epoch["seconds"] for epoch in self.epochs),
                "epochs": self.epochs,
            },
        )


class ProgressBar(TQDMProgressBar):
    """A bar with the losses of the latest step, and the images per second of the epoch.

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
        latest = trainer.callback_metrics
        shown: dict[str, int | str | float | dict[str, float]] = {
            name: f"{float(latest[f'train/{name}_step']):.3f}"
            for name in loss_names(pl_module)
            if f"train/{name}_step" in latest
        }
        shown["images/s"] = f"{self._report.images_per_second:.0f}"
        return shown


class SegmentationGrid(Callback):
    """Picture a few training images beside their segmentation, as training goes on.

    The pictures go to TensorBoard and to ``<folder>/epoch-0009.jpg``. The images are spread evenly
    over the training set and stay the same, so that pictures of different epochs compare.

    Args:
        folder: where the pictures go.
        transform: resizing of the images.
        every_n_epochs: how often; the last epoch always has its picture.
        num_images: how many images.
    """

    def __init__(
        self, folder: Path, transform: Evaluation, every_n_epochs: int, num_images: int = 8
    ) -> None:
        self.folder = folder
        self.transform = transform
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the grid where its turn has come."""
        epoch = trainer.current_epoch + 1
        due = epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        if not due or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Segmenter)
        grid = self._draw(trainer, pl_module)
        if grid is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        grid.save(self.folder / f"epoch-{epoch - 1:04d}.jpg", quality=90)
        logger: Any = trainer.logger  # each kind has its own `experiment`
        if logger is not None:
            logger.experiment.add_image(
                "segmentation", np.asarray(grid), trainer.global_step, dataformats="HWC"
            )

    def _draw(self, trainer: L.Trainer, model: Segmenter) -> Image.Image | None:
        loader: Any = trainer.train_dataloader  # Lightning's type allows nests of loaders
        paths = loader.dataset.paths
        step = max(1, len(paths) // self.num_images)
        images = PredictionImages(paths[::step][: self.num_images], self.transform)
        rows = []
        for i in range(len(images)):
            try:
                image = images[i]["image"]
            except ImageReadError:
                continue  # training has told of it
            logits = model.segment(image[None].to(model.device))
            labels = ops.label_map(logits, (image.shape[1], image.shape[2]))[0].cpu().numpy()
            rows.append([to_image(image), colorize(labels, model.num_classes)])
        return contact_sheet(rows, rows_across=2) if rows else None


class CheckpointConfig(Callback):
    """Put the run's configuration into its checkpoints, so that one file tells all.

    It lies under `KEY` as YAML, a plain string: checkpoints stay readable without running code.

    Args:
        config: the configuration.
    """

    KEY = "densesiam_config"

    def __init__(self, config: str) -> None:
        self.config = config

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration."""
        checkpoint[self.KEY] = self.config


class PredictionWriter(BasePredictionWriter):
    """Write label maps and coloured overlays of the source's size, one of each per image.

    Under `folder`:

    - ``labels/<image>.png``: category numbers, 8 bits (16 where there are more than 256);
    - ``overlays/<image>.jpg``: the photograph below the categories' colours;
    - ``legend.png``, ``contact_sheet.jpg``: the colours' numbers; the first images side by side;
    - ``summary.json``, ``categories.csv``: the images, and each category's share of the pixels;
    - ``report.html``: the same as a page, which needs no other file and no network.

    ``<image>`` is the image's path within `root` without extension; images that differ in their
    extension only keep it.

    Args:
        folder: where all of it goes.
        root: folder that the images' names are relative to; None takes their bare names.
        categories: what the K categories are called.
        protocol: how it is made, in words, for the page.
        titles: a name for each image on the contact sheet; by default the file names.
        most_on_sheet: how many images the contact sheet and the page show.
    """

    def __init__(
        self,
        folder: Path,
        root: Path | None,
        categories: Sequence[str],
        protocol: Mapping[str, str],
        titles: Sequence[str] | None = None,
        most_on_sheet: int = 24,
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.root = root
        self.categories = list(categories)
        self.num_categories = len(self.categories)
        self.protocol = protocol
        self.titles = titles
        self.most_on_sheet = most_on_sheet
        self._names: list[Path] = []
        self._usage = torch.zeros(self.num_categories, dtype=torch.int64)
        self._rows: list[list[Image.Image]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the names of all files before the first is written."""
        loader: Any = trainer.predict_dataloaders  # Lightning's type allows nests of loaders
        self._names = output_names(loader.dataset.paths, self.root)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: list[Tensor],
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the files of one batch."""
        for labels, index, path in zip(prediction, batch["index"], batch["path"], strict=True):
            name = self._names[int(index)]
            numbers = labels.cpu().numpy()
            photo = read_image(path)
            painted = overlay(photo, numbers, self.num_categories)
            narrow = self.num_categories <= _MOST_LABELS_OF_A_BYTE
            depth = np.uint8 if narrow else np.uint16
            _save(Image.fromarray(numbers.astype(depth)), self.folder / "labels" / f"{name}.png")
            _save(painted, self.folder / "overlays" / f"{name}.jpg", quality=92)
            self._usage += torch.bincount(labels.flatten().cpu(), minlength=self.num_categories)
            if len(self._rows) < self.most_on_sheet:
                # Only as large as they will be shown: full-size photographs would pile up.
                row = [photo, colorize(numbers, self.num_categories), painted]
                for picture in row:
                    picture.thumbnail((640, 320))
                self._rows.append(row)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what describes all images together."""
        titles = list(self.titles or [name.as_posix() for name in self._names])[: len(self._rows)]
        sheet = contact_sheet(self._rows, titles, rows_across=2)
        _save(sheet, self.folder / "contact_sheet.jpg", quality=88)
        _save(legend(self.categories), self.folder / "legend.png")
        shares = self._usage / self._usage.sum()
        with (self.folder / "categories.csv").open("w", newline="") as file:
            rows = zip(range(self.num_categories), self.categories, shares.tolist(), strict=True)
            csv.writer(file).writerows([["category", "name", "pixel_share"], *rows])
        protocol = {"images": self._extent(), **self.protocol}
        write_prediction_page(
            self.folder / "report.html",
            titles,
            self._rows,
            self.categories,
            shares.tolist(),
            protocol,
        )
        write_json(
            self.folder / "summary.json",
            {
                "protocol": protocol,
                "images": [name.as_posix() for name in self._names],
                "categories": self.categories,
                "category_shares": shares.tolist(),
                "categories_used": int((self._usage > 0).sum()),
                "usage_perplexity": float(torch.special.entr(shares).sum().exp()),
            },
        )

    def _extent(self) -> str:
        """How many images there are, and how many of them the page shows."""
        count, shown = len(self._names), len(self._rows)
        return (
            f"{count:,}" if count == shown else f"{count:,}, of which the first {shown} are shown"
        )


def output_names(paths: Sequence[Path], root: Path | None) -> list[Path]:
    """Name the predictions of image files: without extension, unless two would be the same."""
    names = [path.relative_to(root) if root else Path(path.name) for path in paths]
    stems = [name.with_suffix("") for name in names]
    count = Counter(stems)
    return [stem if count[stem] == 1 else name for name, stem in zip(names, stems, strict=True)]


def loss_names(module: L.LightningModule) -> list[str]:
    """Names of a method's losses: the total, then its parts."""
    return ["loss", *getattr(module, "weights", {})]


def describe_epoch(epoch: dict[str, float], max_epochs: int | None, losses: Sequence[str]) -> str:
    """One line about an epoch, from its entry in the report."""
    width = len(str(max_epochs))
    parts = [f"epoch {epoch['epoch'] + 1:>{width}}/{max_epochs}"]
    parts += [f"{name} {epoch[f'train/{name}']:.3f}" for name in losses if f"train/{name}" in epoch]
    if "train/usage_perplexity" in epoch:
        parts.append(f"categories used {epoch['train/usage_perplexity']:.1f}")
    if "val/miou" in epoch:
        parts.append(f"mIoU {100 * epoch['val/miou']:.1f}")
        parts.append(f"accuracy {100 * epoch['val/accuracy']:.1f}")
    parts.append(f"{epoch['images_per_second']:.0f} images/s")
    return "  ".join(parts)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is whole at every moment; nan and infinity become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, list) else value

    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(plain(content), indent=2) + "\n")
    temporary.replace(path)


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def _print(trainer: L.Trainer, line: str) -> None:
    """Print a line without tearing the progress bar apart."""
    bar = trainer.progress_bar_callback
    if bar is None:
        print(line, flush=True)
    else:
        bar.print(line)
