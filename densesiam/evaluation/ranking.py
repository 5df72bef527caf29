"""Which images of a labelled set a model does best and worst on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from densesiam.evaluation.matching import reorder_clusters
from densesiam.evaluation.metrics import ClusterMetrics, score


class ImageCounts(Callback):
    """Keep the pixel counts of each image while a model is validated.

    Counts, not pictures: the matching, and with it what is good and bad, is known only after the
    last image.

    Attributes:
        counts: (num_classes, num_clusters) int32 of each image, by its index in the data set; after
            validation those of all processes.
    """

    def __init__(self) -> None:
        self.counts: dict[int, np.ndarray] = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last validation's."""
        self.counts = {}

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep those of a batch."""
        evaluator = pl_module.evaluator
        assert isinstance(evaluator, ClusterMetrics)
        tables = evaluator.image_counts.cpu().numpy().astype(np.int32)
        for index, table in zip(batch["index"].tolist(), tables, strict=True):
            # Of an image that comes twice, to fill up a process's share, one is void all over.
            if index not in self.counts or table.any():
                self.counts[index] = table

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather those of all processes."""
        if trainer.world_size > 1:
            parts: list[dict[int, np.ndarray]] = [{}] * trainer.world_size
            dist.all_gather_object(parts, self.counts)
            for part in parts:
                for index, table in part.items():
                    if index not in self.counts or table.any():
                        self.counts[index] = table


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image under the matching of the whole set, in [0, 1].

    Attributes:
        index: its number in the data set.
        miou: mean IoU over the classes that its labels or its prediction have.
        accuracy: share of its labelled pixels that are right.
    """

    index: int
    miou: float
    accuracy: float


def rank_images(counts: Mapping[int, np.ndarray], assignment: np.ndarray) -> list[ImageScore]:
    """Score each image, the best first; images without a labelled pixel have no place.

    Args:
        counts: pixel counts (num_classes, num_clusters) of each image, by its index.
        assignment: class of each cluster, -1 for none.
    """
    scores = []
    for index, table in counts.items():
        if table.any():
            image = score(reorder_clusters(table, assignment))
            scores.append(ImageScore(index, image.miou, image.accuracy))
    return sorted(scores, key=lambda image: (-image.miou, -image.accuracy, image.index))
