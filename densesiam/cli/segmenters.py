"""Trained models that segment, whichever command has trained them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from torch import Tensor
from torchmetrics import Metric

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
        """The coarsest stride of the backbone, in pixels; a multiple of the features' own."""
        info: Any = self.model.encoder.backbone.feature_info
        coarsest = max(stage["reduction"] for stage in info.info)
        return math.lcm(coarsest, self.model.encoder.stride)


class LearnedFromLabels(L.LightningModule):
    """A model that labels have taught, to be scored by the loop that scores a `Segmenter`.

    Args:
        trained: the model.
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model = trained.model
        self.num_classes = trained.num_classes
        self.evaluator: Metric | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.model(images)

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """Compute logits in evaluation mode, whatever the model's mode."""
        return self.model.eval()(images)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's scores."""
        assert self.evaluator is not None
        self.evaluator.reset()

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Score a batch: ``image`` (B, 3, H, W), ``label`` (B, H, W) int64."""
        assert self.evaluator is not None
        self.evaluator.update(self.segment(batch["image"]), batch["label"])


def is_learned_from_labels(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is one of `transfer segmentation`."""
    return checkpoint.get(Supervised.KEY) == SegmentationTransfer.__name__


def read_segmenter(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ``fit``, ``picie`` or ``transfer segmentation``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint.
    """
    expected = "expected a .ckpt file that `fit`, `picie` or `transfer segmentation` wrote"
    content = read_file(path, expected)
    if isinstance(content, dict) and is_learned_from_labels(content):
        return content
    return read_checkpoint(path)


def load_segmenter(path: Path, head: Head = "main") -> Trained:
    """Read a model that ``fit``, ``picie`` or ``transfer segmentation`` has trained.

    Args:
        path: the checkpoint.
        head: "aux" takes the over-clustering head's categories.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of such a model, or has no such head.
    """
    checkpoint = read_segmenter(path)
    config = yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}"))
    if is_learned_from_labels(checkpoint):
        if head != "main":
            raise ValueError(f"--head {head}: {path} was trained with labels, and has one head")
        transferred = SegmentationTransfer.load_from_checkpoint(
            path, map_location="cpu", weights_only=True, weights=None
        )
        val = config.get("data", {}).get("val") or {}
        transform = val.get("init_args", {}).get("transform") or {}
        classes = transferred.classes
        return Trained(transferred.eval(), len(classes), classes, transform.get("resize"))
    method = METHODS[checkpoint[Method.KEY]]
    model = method.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert isinstance(model, Segmenter)
    if head == "aux":
        segment_with_aux(model)
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
