"""Fine-tuning for object detection and instance segmentation."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm.layers
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from densesiam.models import Encoder
from densesiam.models.backbone import stage_maps
from densesiam.transfer.base import Supervised

_STRIDES = (4, 8, 16, 32)
_NO_SUCH_OBJECTS = -1  # how the metric says that there was nothing to find

# The metric's names and ours.
_SCORES = {
    "map": "ap",
    "map_50": "ap50",
    "map_75": "ap75",
    "map_small": "ap_small",
    "map_medium": "ap_medium",
    "map_large": "ap_large",
}


class PyramidBackbone(nn.Module):
    """A backbone's four stages, and the feature pyramid of Lin et al. (CVPR 2017) over them.

    Unlike the encoder's pyramid it keeps all levels, as torchvision's detectors need them.

    Attributes:
        out_channels: channels of every level.

    Args:
        backbone: name of a timm model with stages of strides 4 to 32; see `Encoder`.
        weights: what to start from, see `Encoder`.
        frozen_batchnorm: keep the backbone's batch normalisation as it is, and have none in the
            pyramid.

    Raises:
        ValueError: as of `Encoder`; or a backbone that does not take images of any size.
    """

    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, backbone: str, weights: str | None, frozen_batchnorm: bool) -> None:
        super().__init__()
        encoder = Encoder(backbone, weights, _STRIDES)
        if not encoder.any_size:
            raise ValueError(
                f"{backbone} takes images of few sizes, and a detector meets many: take a backbone "
                "with stages for any size, such as ResNet, ConvNeXt, Swin or SwinV2"
            )
        self.register_buffer("input_scale", encoder.input_scale)
        self.register_buffer("input_shift", encoder.input_shift)
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
            PyramidBackbone(backbone, weights, frozen_batchnorm),
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
            iou_type=("bbox", "segm") if masks else "bbox", backend="pycocotools"
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
            if self.masks:
                result["masks"] = result["masks"].squeeze(1) > 0.5
                truth["masks"] = target["masks"].bool()
            self.evaluator.update([result], [truth])

    def score(self) -> dict[str, float]:
        """COCO's average precisions."""
        result = self.evaluator.compute()
        self.evaluator.reset()
        kinds = {"box": "bbox_", "mask": "segm_"} if self.masks else {"box": ""}
        scores = {
            f"{kind}/{name}": float(result[prefix + key])
            for kind, prefix in kinds.items()
            for key, name in _SCORES.items()
        }
        return {k: math.nan if v == _NO_SUCH_OBJECTS else v for k, v in scores.items()}
