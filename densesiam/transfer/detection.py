"""Fine-tuning for object detection and instance segmentation."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import timm.layers
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from densesiam.models import Encoder
from densesiam.models.backbone import stage_maps
from densesiam.transfer.base import Supervised

_STRIDES = (4, 8, 16, 32)

# COCO's own, in float64: rounded to float32, 0.6 lies beyond a recall of 3 / 5.
_OVERLAPS = np.linspace(0.5, 0.95, 10).tolist()
_RECALLS = np.linspace(0.0, 1.0, 101).tolist()

# Overlaps and sizes (all, small, medium, large) that each score is the mean over.
_SCORES: dict[str, tuple[slice, int]] = {
    "ap": (slice(None), 0),
    "ap50": (slice(0, 1), 0),
    "ap75": (slice(5, 6), 0),
    "ap_small": (slice(None), 1),
    "ap_medium": (slice(None), 2),
    "ap_large": (slice(None), 3),
}


class PyramidBackbone(nn.Module):
    """A backbone's four stages, and the feature pyramid of Lin et al. (CVPR 2017) over them.

    Unlike the encoder's pyramid it keeps all levels, as torchvision's detectors need them.

    Attributes:
        out_channels: channels of every level.
        weights_report: as of `Encoder`.

    Args:
        backbone: name of a timm model with stages of strides 4 to 32; see `Encoder`.
        weights: what to start from, see `Encoder`.
        frozen_batchnorm: keep the backbone's batch normalisation as it is, and have none in the
            pyramid.
        **options: more arguments of `Encoder`.

    Raises:
        ValueError: as of `Encoder`; or a backbone that does not take images of any size.
    """

    input_scale: Tensor
    input_shift: Tensor

    def __init__(
        self, backbone: str, weights: str | None, frozen_batchnorm: bool, **options: Any
    ) -> None:
        super().__init__()
        encoder = Encoder(backbone, weights, _STRIDES, **options)
        if not encoder.any_size:
            raise ValueError(
                f"{backbone} takes images of few sizes, and a detector meets many: take a backbone "
                "with stages for any size, such as ResNet, ConvNeXt, Swin or SwinV2"
            )
        self.register_buffer("input_scale", encoder.input_scale)
        self.register_buffer("input_shift", encoder.input_shift)
        self.weights_report = encoder.weights_report
        body = encoder.backbone
        channels = body.feature_info.channels()  # type: ignore[union-attr,operator] # timm's type
        self.body = timm.layers.freeze_batch_norm_2d(body) if frozen_batchnorm else body
        self.out_channels = 256
        self.fpn = FeaturePyramidNetwork(
            channels,
            self.out_channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=None if frozen_batchnorm else nn.BatchNorm2d,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The levels, finest first, of images (B, 3, H, W)."""
        stages = stage_maps(self.body, images * self.input_scale + self.input_shift)
        return self.fpn(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))


class DetectionTransfer(Supervised):
    """torchvision's Mask R-CNN or Faster R-CNN on a pre-trained backbone, all of it trained.

    Scores are COCO's, from pycocotools: ``box/ap`` is the mean over ten overlaps from 0.5 to 0.95,
    ``box/ap50`` at 0.5, and so on; ``mask/...`` with masks. nan: nothing of that size to find.

    Args:
        classes: names of the classes, background not counted.
        masks: find masks too (Mask R-CNN); otherwise boxes alone (Faster R-CNN).
        backbone: name of a timm model with stages of strides 4 to 32; see `Encoder`.
        weights: what to start from, see `Encoder`; None starts from random tensors.
        frozen_batchnorm: keep the backbone's batch normalisation as it is, as is usual with
            supervised weights and small batches. Otherwise it is trained, also in the pyramid; with
            few images on each device, synchronise it (trainer.sync_batchnorm).
        sizes: shorter sides of the images, in pixels, one drawn for each image in training; scores
            use the last.
        max_size: most of their longer sides.
        proposals: regions of each image that the first stage passes on.
        sampled_proposals: how many of them the second stage learns from.
        weights_network: which of several networks in a file of weights, see `Encoder`.
        input_range: what images were normalised with for the weights, see `Encoder`.
        **training: the arguments of `Supervised`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        masks: bool = True,
        backbone: str = "resnet50",
        weights: str | None = None,
        frozen_batchnorm: bool = False,
        sizes: Sequence[int] = (640, 672, 704, 736, 768, 800),
        max_size: int = 1333,
        proposals: int = 1000,
        sampled_proposals: int = 512,
        weights_network: str | None = None,
        input_range: Literal["auto", "imagenet", "half"] = "auto",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes must be at least 1 pixel, got {list(sizes)}")
        if min(proposals, sampled_proposals) < 1:
            raise ValueError(
                "proposals and sampled_proposals must be at least 1, "
                f"got {proposals} and {sampled_proposals}"
            )
        detector = MaskRCNN if masks else FasterRCNN
        self.detector = detector(
            PyramidBackbone(
                backbone,
                weights,
                frozen_batchnorm,
                weights_network=weights_network,
                input_range=input_range,
            ),
            len(classes) + 1,
            min_size=tuple(sizes),
            max_size=max_size,
            image_mean=[0.0, 0.0, 0.0],  # images come normalised
            image_std=[1.0, 1.0, 1.0],
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_batch_size_per_image=sampled_proposals,
        )
        self.masks = masks
        self.evaluator = MeanAveragePrecision(
            iou_type=("bbox", "segm") if masks else "bbox",
            iou_thresholds=_OVERLAPS,
            rec_thresholds=_RECALLS,
            extended_summary=True,  # precisions in float64
            backend="pycocotools",
        )
        self.evaluator.warn_on_many_detections = False

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Find objects.

        Args:
            images: (3, H, W) each, normalised with ImageNet's mean and standard deviation.

        Returns:
            For each image, in its own pixels: ``boxes`` (n, 4), ``labels`` (n,) from 1, ``scores``
            (n,) and, with masks, ``masks`` (n, 1, H, W) in [0, 1].
        """
        return self.detector(images)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """torchvision's: objectness and boxes of proposals; classes, boxes and masks of objects.

        Raises:
            ValueError: masks are to be learned, and there are none.
        """
        needed = ("boxes", "labels", "masks") if self.masks else ("boxes", "labels")
        if self.masks and "masks" not in batch["targets"][0]:
            raise ValueError(
                "model.masks is on, but the training data has none: set model.masks to false"
            )
        targets = [{name: target[name] for name in needed} for target in batch["targets"]]
        for target in targets:
            target["boxes"] = target["boxes"].float()  # as the detector's own
        parts = self.detector(batch["images"], targets)
        return {name.removeprefix("loss_"): value for name, value in parts.items()}

    def count(self, batch: dict[str, Any]) -> None:
        """Compare what is found in a batch with what is there."""
        found = self(batch["images"])
        for result, target, counts in zip(found, batch["targets"], batch["counts"], strict=True):
            if not counts:
                continue
            truth = {"boxes": target["boxes"], "labels": target["labels"]}
            truth |= {"iscrowd": target["ignored"].int(), "area": target["area"]}
            result["boxes"] = result["boxes"].double()  # sides are differences
            if self.masks:
                result["masks"] = result["masks"].squeeze(1) > 0.5
                truth["masks"] = target["masks"].bool()
            self.evaluator.update([result], [truth])

    def score(self) -> dict[str, float]:
        """COCO's average precisions: those of pycocotools' COCOeval."""
        result = self.evaluator.compute()
        self.evaluator.reset()
        kinds = {"box": "bbox_", "mask": "segm_"} if self.masks else {"box": ""}
        return {
            f"{kind}/{name}": _mean(result.get(prefix + "precision"), *over)
            for kind, prefix in kinds.items()
            for name, over in _SCORES.items()
        }


def _mean(precision: Tensor | None, overlaps: slice, size: int) -> float:
    """Mean precision over recalls, classes and some overlaps; nan if there was nothing to find.

    Args:
        precision: (overlaps, recalls, classes, sizes, numbers of detections), -1 for classes that
            have no object of the size; None if there was no image.
        overlaps: those to average over.
        size: number of the size.
    """
    if precision is None:
        return math.nan
    found = precision[overlaps, :, :, size, -1]
    return float(found[found > -1].mean())
