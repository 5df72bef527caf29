"""Pictures of a segmentation, as training goes on."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from PIL import Image

from densesiam import ops
from densesiam._writing import replacing
from densesiam.data import Evaluation, ImageReadError, PredictionImages, to_image
from densesiam.methods import Segmenter
from densesiam.reports.visualize import colorize, contact_sheet
from densesiam.training.logs import RunLogs


class SegmentationGrid(Callback):
    """Picture a few training images beside their segmentation, as training goes on.

    The pictures go to TensorBoard and to ``<folder>/epoch-0010.jpg``, by the number of the epoch,
    counted from 1. The images are spread evenly over the training set and stay the same, so that
    pictures of different epochs compare.

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
        with replacing(self.folder / f"epoch-{epoch:04d}.jpg") as path:
            grid.save(path, quality=90)
        logger = trainer.logger
        if isinstance(logger, RunLogs):
            with logger.named():
                logger.experiment.add_image(
                    "segmentation", np.asarray(grid), trainer.global_step - 1, dataformats="HWC"
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
