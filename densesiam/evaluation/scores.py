"""Scores of a segmentation that was learned from labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from densesiam import ops
from densesiam.evaluation.metrics import score


class SegmentationScores(Metric):
    """Mean IoU and pixel accuracy of class logits over a labelled set, streamed.

    The state is one int64 table of pixel counts, summed over batches and processes. Void pixels
    count nowhere; `compute` gives ``miou`` over the classes in truth or prediction, ``accuracy``,
    and ``iou`` (num_classes,), nan for classes in neither.

    Args:
        num_classes: classes of logits and labels.
        ignore_index: label of void.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state(
            "confusion",
            default=torch.zeros(num_classes, num_classes, dtype=torch.int64),
            dist_reduce_fx="sum",
        )

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (B, num_classes, h, w), enlarged bilinearly to the labels' size.
            labels: (B, H, W) integers.
        """
        prediction = ops.label_map(logits, (labels.shape[1], labels.shape[2]))
        self.confusion += ops.confusion_matrix(
            prediction, labels.long(), self.num_classes, self.num_classes, self.ignore_index
        )

    def compute(self) -> dict[str, Tensor]:
        """The scores; see the class."""
        result = score(self.confusion.cpu().numpy())
        return {
            "miou": torch.tensor(result.miou),
            "accuracy": torch.tensor(result.accuracy),
            "iou": torch.from_numpy(result.iou),
        }

    def by_name(self, classes: Sequence[str]) -> dict[str, float]:
        """``miou``, ``accuracy``, and the IoU of each class as ``iou/NAME``."""
        result = self.compute()
        by_class = zip(classes, result["iou"].reshape(-1).tolist(), strict=True)
        return {
            "miou": float(result["miou"]),
            "accuracy": float(result["accuracy"]),
            **{f"iou/{name}": value for name, value in by_class},
        }
