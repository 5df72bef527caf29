"""timm's networks as backbones: their stages, and images of any size."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn
from torch.func import functional_call

from densesiam.models.weights import suggest_backbones

# How timm's networks are told to take images of any size: those with position embeddings resample
# them for each image, those with windows fill up the last. What knows neither has no need of them,
# or takes one size.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})

ANY_SIZE_NAMES = "ViT, DeiT, DINOv2, DINOv3, EVA-02, Swin, SwinV2, ConvNeXt or ResNet"
"""Families that take images of any size, for messages."""


def build_backbone(
    name: str,
    strides: Sequence[int],
    layers: Sequence[int] | None = None,
    pretrained: bool = False,
    output_stride: int = 32,
) -> tuple[nn.Module, bool]:
    """Build timm's feature extractor for some stages of a network.

    Args:
        name: timm's name.
        strides: output strides of the stages, finest first. Stages that share one count as one,
            the deepest.
        layers: blocks of a plain transformer, counted from 0, in place of strides.
        pretrained: whether timm is to download weights.
        output_stride: 16 or 8 dilate the last stages.

    Returns:
        backbone: the extractor: from images, a list of maps (B, C_i, H / stride_i, W / stride_i).
        any_size: whether it is known to take images of any size.

    Raises:
        ValueError: no such name, stage, layer or dilation; or a network without feature maps.
        RuntimeError: timm could not provide its weights.
    """
    if not timm.is_model(name):
        close = suggest_backbones(name)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise ValueError(f"unknown backbone {name!r}: {hint}timm.list_models() has all the names")
    dilation: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    probe, options = _probe(name, dilation)
    reductions = [int(info["reduction"]) for info in probe.feature_info.info]
    if layers is None:
        stages = _stages(name, reductions, strides)
    else:
        _check_layers(name, reductions, layers)
        stages = list(layers)
    try:
        backbone: Any = timm.create_model(
            name, features_only=True, out_indices=tuple(stages), pretrained=pretrained, **options
        )
    except Exception as error:  # whatever the download meets
        raise RuntimeError(
            f"timm could not provide the weights of {name}; with no way to its servers, give a "
            f"local file as weights. ({error})"
        ) from error
    fixed = backbone.pretrained_cfg.get("fixed_input_size", False)
    return backbone, not fixed or options.keys() != dilation.keys()


def _probe(name: str, dilation: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The extractor of all stages, and the options that it was built with."""
    refused: Exception | None = None
    for any_size in (*_ANY_SIZE, {}):
        options = {**any_size, **dilation}
        try:
            return timm.create_model(name, features_only=True, **options), options
        except (TypeError, NotImplementedError, AssertionError) as error:  # unknown options
            refused = error
        except (RuntimeError, AttributeError) as error:
            raise ValueError(
                f"timm offers no feature maps of {name} ({error}). Take another backbone, such as "
                f"{ANY_SIZE_NAMES}"
            ) from error
    if not dilation:
        raise ValueError(f"timm cannot build {name} as a backbone: {refused}") from refused
    raise ValueError(
        f"timm's {name} cannot be dilated to output_stride={dilation['output_stride']}: leave it "
        "at 32, or choose a ResNet"
    ) from refused


def _stages(name: str, reductions: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Indices of the deepest stages of these strides."""
    stage_of = {reduction: i for i, reduction in enumerate(reductions)}
    if unknown := [s for s in strides if s not in stage_of]:
        hint = ""
        if len(stage_of) == 1 and len(reductions) > 1:
            depth, few = len(reductions), min(4, len(reductions))
            spread = [depth * (i + 1) // few - 1 for i in range(few)]
            hint = f": set strides to {list(stage_of)}, or name layers, such as {spread}"
        raise ValueError(
            f"{name} has stages of strides {sorted(stage_of)}, but not {unknown}{hint}"
        )
    return [stage_of[stride] for stride in strides]


def _check_layers(name: str, reductions: Sequence[int], layers: Sequence[int]) -> None:
    if len(set(reductions)) > 1:
        raise ValueError(
            f"{name} has stages of strides {sorted(set(reductions))}: choose among them by "
            "strides; layers are for plain transformers"
        )
    last = len(reductions) - 1
    if (
        not layers
        or list(layers) != sorted(set(layers))
        or not 0 <= layers[0] <= layers[-1] <= last
    ):
        raise ValueError(
            f"layers of {name} must be rising numbers from 0 to {last}, got {list(layers)}"
        )


def stage_maps(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The stages of an extractor, channels first whatever its own layout."""
    stages = backbone(images)
    if getattr(backbone, "output_fmt", Format.NCHW) == Format.NHWC:
        stages = [stage.permute(0, 3, 1, 2) for stage in stages]
    return stages


def enable_checkpoints(backbone: nn.Module, name: str) -> None:
    """Let a backbone compute its blocks anew in backward, rather than keep their maps.

    Args:
        backbone: from `build_backbone`.
        name: timm's name of it, for messages.

    Raises:
        ValueError: it has batch normalisation, which would count every image twice; or timm cannot
            do it.
    """
    if any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        raise ValueError(
            f"checkpoint_gradients: {name} has batch normalisation, whose running statistics would "
            "count every image twice. Leave it off, or take a transformer or a ConvNeXt"
        )
    try:
        # timm wraps transformers, and the wrapper knows nothing of it.
        network: Any = getattr(backbone, "model", backbone)
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise ValueError(f"checkpoint_gradients: timm has no such thing for {name}") from error


def takes(backbone: nn.Module, height: int, width: int) -> bool:
    """Whether an extractor takes images of this size: found out without computing anything."""
    tensors = {
        name: tensor.to("meta")
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    images = torch.empty(2, 3, height, width, device="meta")
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            functional_call(backbone, tensors, (images,))
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def sizes_taken(backbone: nn.Module, name: str, multiple: int) -> str | None:
    """Say which sizes of images an extractor takes, if it does not take all.

    Args:
        backbone: from `build_backbone`.
        name: timm's name of it.
        multiple: what sides are multiples of by themselves.

    Returns:
        Such as "hiera_tiny_224 takes images of 224 x 224 pixels alone"; None where it is not the
        size that matters.
    """
    config: Any = backbone.pretrained_cfg
    height, width = config["input_size"][1:]
    if not takes(backbone, height, width):
        return None
    for step in range(multiple, max(height, width) + 1, multiple):
        if height % step == width % step == 0 and takes(backbone, height + step, width):
            if step == multiple:
                return None
            return f"{name} takes images whose sides are multiples of {step} pixels alone"
    return f"{name} takes images of {height} x {width} pixels alone"
