"""Semantic segmentation learned from labels: the loss, and fine-tuning."""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from densesiam.evaluation.scores import SegmentationScores
from densesiam.models import Encoder
from densesiam.transfer.base import Supervised


class SupervisedSegmentation(Supervised):
    """Pixel-wise cross-entropy, and mean IoU at the labels' own size.

    A subclass defines `forward`, images (B, 3, H, W) to class logits (B, classes, h, w).

    Args:
        classes: names of the classes.
        ignore_index: label of void pixels, which are neither learned nor scored.
        **training: the arguments of `Supervised`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int = 255,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.ignore_index = ignore_index
        self.classes = list(classes)
        self.evaluator = SegmentationScores(len(self.classes), ignore_index)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the logits, enlarged bilinearly to the labels, over pixels not void."""
        label = batch["label"]
        logits = F.interpolate(
            self(batch["image"]), label.shape[-2:], mode="bilinear", align_corners=False
        )
        total = F.cross_entropy(logits, label, ignore_index=self.ignore_index, reduction="sum")
        # A batch may be void all over, whose mean would be 0 / 0.
        return {"segmentation": total / (label != self.ignore_index).sum().clamp_min(1)}

    def count(self, batch: dict[str, Tensor]) -> None:
        """Compare a batch's segmentation with its labels."""
        self.evaluator.update(self(batch["image"]), batch["label"])

    def score(self) -> dict[str, float]:
        """``miou``, ``accuracy``, and the IoU of each class as ``iou/NAME``."""
        scores = self.evaluator.by_name(self.classes)
        self.evaluator.reset()
        return scores


class FCNHead(nn.Sequential):
    """Two dilated 3x3 convolutions with batch normalisation, then a 1x1 to the classes.

    As He et al. (CVPR 2020, "Momentum contrast") compare pre-trainings: 256 channels, dilation 6.

    Args:
        in_channels: channels of the features.
        num_classes: classes of the labels.
        channels: of both hidden layers.
        dilation: of both 3x3 convolutions.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 256, dilation: int = 6
    ) -> None:
        layers: list[nn.Module] = []
        for width in (in_channels, channels):
            layers += [
                nn.Conv2d(width, channels, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.Conv2d(channels, num_classes, 1))


class SegmentationTransfer(SupervisedSegmentation):
    """A fully convolutional network on a pre-trained backbone, all of it trained.

    Args:
        classes: names of the classes.
        backbone: name of a timm model; see `Encoder`.
        weights: what to start from, see `Encoder`; None starts from random tensors.
        strides: output strides of the stages to use, finest first: one, or those of a pyramid.
        output_stride: 16 or 8 dilate the last stages, and ``strides`` then ends in it.
        fpn: add up the stages in the paper's pyramid; otherwise a single stage is used.
        fpn_channels: channels of the pyramid.
        head: ``"fcn"``, `FCNHead`; ``"linear"``, a 1x1 convolution.
        weights_network: which of several networks in a file of weights, see `Encoder`.
        input_range: what images were normalised with for the weights, see `Encoder`.
        **training: the arguments of `SupervisedSegmentation`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        backbone: str = "resnet50",
        weights: str | None = None,
        strides: Sequence[int] = (16,),
        output_stride: Literal[8, 16, 32] = 16,
        fpn: bool = False,
        fpn_channels: int = 256,
        head: Literal["fcn", "linear"] = "fcn",
        weights_network: str | None = None,
        input_range: Literal["auto", "imagenet", "half"] = "auto",
        **training: Any,
    ) -> None:
        super().__init__(classes, **training)
        self.encoder = Encoder(
            backbone,
            weights,
            strides,
            fpn_channels,
            fpn,
            output_stride=output_stride,
            weights_network=weights_network,
            input_range=input_range,
        )
        width = self.encoder.out_channels
        self.head = (
            FCNHead(width, len(classes)) if head == "fcn" else nn.Conv2d(width, len(classes), 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class logits of images (B, 3, H, W), at the finest stage's resolution."""
        return self.head(self.encoder(images))
