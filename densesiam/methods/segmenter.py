"""What methods that segment share: views of the same pixels, label maps, scores."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from densesiam import ops
from densesiam.geometry import aligned_boxes
from densesiam.methods.base import Method
from densesiam.models import Encoder


class Segmenter(Method):
    """A method that learns logits over categories for every pixel.

    A subclass defines `forward`, from images (B, 3, H, W) to logits (B, num_classes, h, w), and
    `training_step`.

    Attributes:
        num_classes: K, the categories.
        evaluator: what scores segmentations during validation, to be set before it: takes
            (logits, labels) and computes a dict, as `densesiam.evaluation.ClusterMetrics` does.

    Args:
        num_classes: K.
        **options: the arguments of `Method`, and so of `Encoder`.
    """

    kind = "segmentation"

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.evaluator: Metric | None = None

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """Compute z as `forward` does, in evaluation mode whatever the model's mode."""
        training = self.training
        self.eval()
        try:
            return self(images)
        finally:
            self.train(training)

    def predict_step(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Label every pixel.

        Args:
            batch: ``image`` (B, 3, h, w); ``box`` (B, 4), the left, top, right and bottom of what
                each image shows, in pixels of its source.

        Returns:
            For each image the categories (H, W), int64, at the source's resolution.
        """
        logits = self.segment(batch["image"])
        return [
            ops.label_map(z[None], (round(bottom - top), round(right - left)))[0]
            for z, (left, top, right, bottom) in zip(logits, batch["box"].tolist(), strict=True)
        ]

    # Training

    def aligned_features(
        self, batch: dict[str, Tensor], encoder: Encoder | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode both views, and bring view 2's features to view 1's frame.

        Args:
            batch: ``view1``, ``view2`` (B, 3, h, w) normalised images; ``crop1``, ``crop2`` (B, 4)
                and ``flip1``, ``flip2`` (B,), where they lie (see `densesiam.geometry`).
            encoder: what encodes them; by default the method's own.

        Returns:
            features1: (B, C, H, W) of view 1.
            features2: (B, C, H, W) of view 2, cropped, mirrored and resized as view 1 is.
            weight: (B,) bool, whether view 1 lies within view 2, so that every pixel has its pair.
        """
        encode = self.encoder if encoder is None else encoder
        features1, features2 = encode(batch["view1"]), encode(batch["view2"])
        boxes, valid = aligned_boxes(batch["crop1"], batch["crop2"], batch["flip1"], batch["flip2"])
        size = (features1.shape[2], features1.shape[3])
        return features1, ops.overlap_sample(features2, boxes, size), valid

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's scores."""
        self._required_evaluator().reset()

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Score a batch: ``image`` (B, 3, H, W), ``label`` (B, H, W) int64."""
        self._required_evaluator().update(self.segment(batch["image"]), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log the evaluator's scalars."""
        scores = self._required_evaluator().compute()
        self.log_dict({f"val/{name}": s.float() for name, s in scores.items() if s.ndim == 0})

    def _required_evaluator(self) -> Metric:
        if self.evaluator is None:
            raise ValueError(
                "validation needs something to score by: set the model's evaluator, such as to "
                f"densesiam.evaluation.ClusterMetrics(num_clusters={self.num_classes}, ...)"
            )
        return self.evaluator
