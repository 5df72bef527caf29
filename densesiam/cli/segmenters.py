"""Trained models that segment, whichever command has trained them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from densesiam.methods import METHODS, DenseSiamSegmentation, Method, Segmenter
from densesiam.training.checkpoints import CheckpointConfig, read_checkpoint, read_file
from densesiam.transfer import SegmentationTransfer
from densesiam.transfer.base import Supervised

Head = Literal["main", "aux"]


@dataclass(frozen=True)
class Trained:
    """A model that gives logits over categories for every pixel.

    Attributes:
        model: from normalised images (B, 3, H, W) to logits, in evaluation mode.
        num_classes: K.
        classes: names of the categories, where labels have given them.
        resize: shorter side of the images that it was trained to segment; None for their own.
    """

    model: Any
    num_classes: int
    classes: list[str] | None
    resize: int | None

    @property
    def multiple(self) -> int:
        """The coarsest stride of the backbone, in pixels."""
        info: Any = self.model.encoder.backbone.feature_info
        return max(stage["reduction"] for stage in info.info)


def load_segmenter(path: Path, head: Head = "main") -> Trained:
    """Read a model that ``fit``, ``picie`` or ``transfer segmentation`` has trained.

    Args:
        path: the checkpoint.
        head: "aux" takes the over-clustering head's categories.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of such a model, or has no such head.
    """
    expected = "expected a .ckpt file that `fit`, `picie` or `transfer segmentation` wrote"
    content = read_file(path, expected)
    task = content.get(Supervised.KEY) if isinstance(content, dict) else None
    model: nn.Module
    if task == SegmentationTransfer.__name__:
        if head != "main":
            raise ValueError(f"--head {head}: {path} was trained with labels, and has one head")
        transferred = SegmentationTransfer.load_from_checkpoint(
            path, map_location="cpu", weights_only=True, weights=None
        )
        config = yaml.safe_load(content.get(CheckpointConfig.KEY, "{}"))
        val = config.get("data", {}).get("val") or {}
        transform = val.get("init_args", {}).get("transform") or {}
        classes = transferred.classes
        return Trained(transferred.eval(), len(classes), classes, transform.get("resize"))
    checkpoint = read_checkpoint(path)
    method = METHODS[checkpoint[Method.KEY]]
    model = method.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert isinstance(model, Segmenter)
    if head == "aux":
        segment_with_aux(model)
    config = yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}"))
    resize = config.get("data", {}).get("predict_transform", {}).get("resize")
    return Trained(model.eval(), model.num_classes, None, resize)


def segment_with_aux(model: Segmenter) -> None:
    """Let the over-clustering head's categories be the model's.

    Raises:
        ValueError: there is no such head.
    """
    if not isinstance(model, DenseSiamSegmentation) or not model.weights["aux"]:
        raise ValueError(
            "--head aux: the model has no over-clustering head (it is PiCIE, model.aux_classes is "
            "null, or model.aux_weight is 0)"
        )
    model.projector, model.num_classes = model.aux_projector, model.hparams["aux_classes"]
