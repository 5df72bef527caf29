"""Probes: what a frozen encoder's features hold, read off by the simplest of classifiers."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from densesiam.models import Encoder
from densesiam.transfer.base import Supervised
from densesiam.transfer.semantic import SupervisedSegmentation


class LinearSegmentationProbe(SupervisedSegmentation):
    """A 1x1 convolution on the frozen stages of a backbone, trained to segment.

    Each stage is normalised per channel over the batch, without scale or shift, so that the
    learning rate suits any features; a 1x1 convolution gives its class logits, and the logits of
    all stages are enlarged bilinearly to the finest and added. That is one linear classifier on
    the stages' concatenation.

    Args:
        classes: names of the classes.
        backbone: name of a timm model; see `Encoder`.
        weights: what to probe, see `Encoder`; None probes the random initialisation.
        strides: output strides of the stages to read, finest first; one of them probes it alone.
        weights_network: which of several networks in a file of weights, see `Encoder`.
        input_range: what images were normalised with for the weights, see `Encoder`.
        layers: blocks of a plain transformer to read, in place of strides; see `Encoder`.
        **training: the arguments of `SupervisedSegmentation`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        backbone: str = "resnet50",
        weights: str | None = None,
        strides: Sequence[int] = (4, 8, 16, 32),
        weights_network: str | None = None,
        input_range: Literal["auto", "imagenet", "half"] = "auto",
        layers: Sequence[int] | None = None,
        **training: Any,
    ) -> None:
        super().__init__(classes, **training)
        # A pyramid as narrow as the classes are many is exactly that classifier.
        self.classifier = Encoder(
            backbone,
            weights,
            strides,
            channels=len(classes),
            normalize_stages=True,
            backbone_lr_factor=0,
            weights_network=weights_network,
            input_range=input_range,
            layers=layers,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class logits of images (B, 3, H, W), at the finest stage's resolution."""
        return self.classifier(images)


class LinearClassificationProbe(Supervised):
    """A linear classifier on the frozen backbone's pooled last stage.

    The features are averaged over the image and normalised per channel over the batch, without
    scale or shift, so that one learning rate suits any features.

    Args:
        classes: names of the classes.
        backbone: name of a timm model; see `Encoder`.
        weights: what to probe, see `Encoder`; None probes the random initialisation.
        stride: output stride of the stage to read; the last has 32.
        weights_network: which of several networks in a file of weights, see `Encoder`.
        input_range: what images were normalised with for the weights, see `Encoder`.
        **training: the arguments of `Supervised`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        backbone: str = "resnet50",
        weights: str | None = None,
        stride: int = 32,
        weights_network: str | None = None,
        input_range: Literal["auto", "imagenet", "half"] = "auto",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.encoder = Encoder(
            backbone,
            weights,
            (stride,),
            fpn=False,
            backbone_lr_factor=0,
            weights_network=weights_network,
            input_range=input_range,
        )
        width = self.encoder.out_channels
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(classes))
        )
        top = {"top1": 1, "top5": min(5, len(classes))}
        self.accuracies = nn.ModuleDict(
            {
                name: MulticlassAccuracy(len(classes), k, average="micro", ignore_index=-1)
                for name, k in top.items()
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, classes) of images (B, 3, H, W)."""
        return self.classifier(self.encoder(images).mean(dim=(2, 3)))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy."""
        return {"classification": F.cross_entropy(self(batch["image"]), batch["label"])}

    def count(self, batch: dict[str, Tensor]) -> None:
        """Compare a batch with its labels; -1 counts nowhere."""
        logits = self(batch["image"])
        for accuracy in self._accuracies():
            accuracy.update(logits, batch["label"])

    def score(self) -> dict[str, float]:
        """``top1`` and ``top5``: shares of images whose class is the first, among the first 5."""
        scores = {
            name: float(accuracy.compute())
            for name, accuracy in zip(self.accuracies, self._accuracies(), strict=True)
        }
        for accuracy in self._accuracies():
            accuracy.reset()
        return scores

    def _accuracies(self) -> list[Metric]:
        return [metric for metric in self.accuracies.values() if isinstance(metric, Metric)]


class NearestNeighbourProbe(nn.Module):
    r"""Segment by the k nearest neighbours among labelled dense features; nothing is trained.

    The memory holds L2-normalised features of labelled images, each with the class at its cell's
    centre. A feature's k neighbours by cosine similarity vote for their classes with weight
    :math:`\exp(s / \tau)` (Wu et al., CVPR 2018, who classify images in this way).

    Args:
        encoder: gives the features; used in evaluation mode, without gradients.
        num_classes: classes of the labels.
        k: neighbours that vote.
        tau: temperature of their weights.
        features_per_image: how many features of each image to remember, drawn from those whose
            label is not void.
        ignore_index: label of void.
        seed: of the draws.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        k: int = 20,
        tau: float = 0.07,
        features_per_image: int = 128,
        ignore_index: int = 255,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(k, features_per_image, num_classes) < 1 or not tau > 0:
            raise ValueError(
                "k, features_per_image and num_classes must be at least 1 and tau positive, "
                f"got {k}, {features_per_image}, {num_classes}, {tau}"
            )
        self.encoder = encoder
        self.num_classes = num_classes
        self.k = k
        self.tau = tau
        self.features_per_image = features_per_image
        self.ignore_index = ignore_index
        self._generator = torch.Generator().manual_seed(seed)
        self._features: list[Tensor] = []  # (n, C) each, unit length
        self._classes: list[Tensor] = []  # (n,) each
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def remember(self, images: Tensor, labels: Tensor) -> None:
        """Add labelled images to the memory.

        Args:
            images: (B, 3, H, W).
            labels: (B, H', W') classes, over the same view.
        """
        features = F.normalize(self.encoder(images), dim=1)
        height, width = features.shape[-2:]
        rows, columns = (
            ((torch.arange(cells) + 0.5) * (length / cells)).long()
            for cells, length in ((height, labels.shape[1]), (width, labels.shape[2]))
        )
        centres = labels[:, rows[:, None], columns].flatten(1)
        for vectors, classes in zip(features.flatten(2).mT, centres, strict=True):
            valid = (classes != self.ignore_index).nonzero().squeeze(1)
            drawn = torch.randperm(len(valid), generator=self._generator)
            chosen = valid[drawn[: self.features_per_image].to(valid.device)]
            self._features.append(vectors[chosen])
            self._classes.append(classes[chosen])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Shares of the neighbours' votes.

        Args:
            images: (B, 3, H, W).

        Returns:
            (B, num_classes, h, w), summing to 1 over the classes.

        Raises:
            ValueError: the memory holds fewer features than vote.
        """
        remembered = sum(len(classes) for classes in self._classes)
        if remembered < self.k:
            raise ValueError(
                f"{self.k} neighbours are to vote, but only {remembered} labelled features are "
                "remembered: lower k, or give more labelled images"
            )
        memory, classes = torch.cat(self._features), torch.cat(self._classes)
        self._features, self._classes = [memory], [classes]
        features = F.normalize(self.encoder(images), dim=1)
        votes = []
        for vectors in features.flatten(2).mT:  # image by image: similarities fill much memory
            similarity, nearest = (vectors @ memory.T).topk(self.k, dim=1)
            ballots = F.one_hot(classes[nearest], self.num_classes).to(similarity.dtype)
            weights = (similarity / self.tau).softmax(dim=1)
            votes.append((weights.unsqueeze(1) @ ballots).squeeze(1))
        return torch.stack(votes).mT.unflatten(2, features.shape[-2:])
