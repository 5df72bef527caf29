"""The operations as modules, and RegionSim: for a training loop of your own.

Torch is all that is needed: neither Lightning nor timm is imported. The modules hold settings; the
tensors of a step, geometry and weights included, are arguments of `forward`. What each computes,
its errors included, is said by the function of the same name in `densesiam.ops`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densesiam import ops
from densesiam.models import Predictor, Projector

__all__ = [
    "OverlapSample",
    "OverlapSimilarity",
    "PixelSimilarity",
    "Predictor",
    "Projector",
    "PseudoLabelLoss",
    "RegionPool",
    "RegionSim",
    "region_contrast",
    "weighted_mean",
]


class OverlapSample(nn.Module):
    """Bilinear samples of a box of each map: crop, flip and resize; see `ops.overlap_sample`.

    Args:
        size: samples along each axis, one number or height and width.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Sample features (B, C, H, W) in boxes (B, 4), fractions of the map: (B, C, Kh, Kw)."""
        return ops.overlap_sample(features, boxes, self.size)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"size={self.size}"


class PixelSimilarity(nn.Module):
    """Loss of each pixel toward the other view, D of equations 2 and 3; see `ops.pixel_similarity`.

    Args:
        kind: ``"cosine"`` or ``"cross_entropy"``.
        reduction: ``"mean"`` or ``"none"``.
    """

    def __init__(
        self,
        kind: Literal["cosine", "cross_entropy"] = "cosine",
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.reduction = reduction

    def forward(self, p: Tensor, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare predictions p (B, C, *) with z of their shape, which gets no gradient.

        Args:
            p: predictions.
            z: projections of the other view.
            weight: (B,) weights of the images, float or bool.
        """
        return ops.pixel_similarity(p, z, self.kind, weight, self.reduction)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"kind={self.kind!r}, reduction={self.reduction!r}"


class OverlapSimilarity(nn.Module):
    """`OverlapSample` of both views and `PixelSimilarity` in one; see `ops.overlap_similarity`.

    Args:
        size: samples along each axis, one number or height and width.
        kind: ``"cosine"`` or ``"cross_entropy"``.
        reduction: ``"mean"`` or ``"none"``.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        kind: Literal["cosine", "cross_entropy"] = "cosine",
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        self.size = size
        self.kind = kind
        self.reduction = reduction

    def forward(
        self,
        p: Tensor,
        z: Tensor,
        boxes_p: Tensor | None,
        boxes_z: Tensor | None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Compare p (B, C, H, W) in boxes_p with z (B, C, H', W') in boxes_z.

        Args:
            p: predictions.
            z: projections of the other view, which get no gradient.
            boxes_p: (B, 4) fractions of p's map; None for all of it.
            boxes_z: (B, 4) fractions of z's map; None for all of it.
            weight: (B,) weights of the images, float or bool.
        """
        return ops.overlap_similarity(
            p, z, boxes_p, boxes_z, self.size, self.kind, weight, self.reduction
        )

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"size={self.size}, kind={self.kind!r}, reduction={self.reduction!r}"


class RegionPool(nn.Module):
    """Features summed over soft regions (equation 4); see `ops.region_pool`.

    Args:
        normalize: mean features instead of sums, which grow with the map and the region.
    """

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Pool features (B, C, H, W) over the softmax of logits (B, N, H, W): (B, N, C)."""
        return ops.region_pool(features, logits, self.normalize)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"normalize={self.normalize}"


class PseudoLabelLoss(nn.Module):
    """Hard cross-entropy toward the network's own labels; see `ops.pseudo_label_loss`.

    Args:
        rebalance: class weights, ``"none"``, ``"frequency"`` or ``"inverse"``.
        reduction: ``"mean"`` or ``"none"``.
    """

    def __init__(
        self,
        rebalance: Literal["none", "frequency", "inverse"] = "none",
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        self.rebalance = rebalance
        self.reduction = reduction

    def forward(
        self,
        logits: Tensor,
        targets: Tensor | None = None,
        counts: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Take the loss of logits (B, K, *) toward the argmax of targets (default: the logits).

        Args:
            logits: the only argument to receive a gradient.
            targets: logits of the logits' shape to take the labels from.
            counts: (K,) pixels of each label, such as those summed over all processes.
            weight: (B,) weights of the images, float or bool.
        """
        return ops.pseudo_label_loss(
            logits, targets, self.rebalance, counts, self.reduction, weight
        )

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"rebalance={self.rebalance!r}, reduction={self.reduction!r}"


class RegionSim(nn.Module):
    r"""Contrast between the soft regions of one image.

    Region n of a view is the sum of its features, each weighted by how much the pixel belongs to
    category n (`ops.region_pool`). Region embeddings pass a projector and a predictor of their own.
    Then each view's predictions find their own region among all regions of the other view:

    .. math:: L = \frac12 L(p_1, z_2) + \frac12 L(p_2, z_1)

    with L as in `region_contrast`. The masks are not detached: regions learn their extent too.

    Args:
        channels: channels of the features.
        hidden_channels: channels of the heads, and of their output.
        tau: temperature of the contrast.
        stop_gradient: keep z from learning, as in the pixels' loss. The authors' release lets it.

    Raises:
        ValueError: tau is not positive.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int = 128,
        tau: float = 0.1,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        if not tau > 0:
            raise ValueError(f"tau, the region contrast's temperature, must be positive, got {tau}")
        self.projector = Projector(channels, hidden_channels, hidden_channels, dense=False)
        self.predictor = Predictor(hidden_channels, hidden_channels, dense=False)
        self.tau = tau
        self.stop_gradient = stop_gradient

    def forward(
        self,
        features1: Tensor,
        logits1: Tensor,
        features2: Tensor,
        logits2: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            features1: (B, C, H, W) features of view 1.
            logits1: (B, N, H, W) logits whose softmax over N assigns its pixels to N regions.
            features2: features of view 2.
            logits2: logits of view 2.
            weight: (B,) weights of the pairs, 0 for those that do not count; all 1 by default.

        Returns:
            A scalar.
        """
        p1, z1 = self._embed(features1, logits1)
        p2, z2 = self._embed(features2, logits2)
        if self.stop_gradient:
            z1, z2 = z1.detach(), z2.detach()
        return 0.5 * (
            region_contrast(p1, z2, self.tau, weight) + region_contrast(p2, z1, self.tau, weight)
        )

    def _embed(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Pool, project and predict: p and z, (B, N, D) each."""
        regions = ops.region_pool(features, logits)
        z = self.projector(regions.flatten(0, 1))
        p = self.predictor(z)
        return p.unflatten(0, regions.shape[:2]), z.unflatten(0, regions.shape[:2])


def region_contrast(p: Tensor, z: Tensor, tau: float, weight: Tensor | None = None) -> Tensor:
    r"""Let each region of one view find itself among the regions of the other.

    :math:`-\log \mathrm{softmax}_m(\hat p_n \cdot \hat z_m / \tau)` at :math:`m = n`, hats for
    vectors of length 1, averaged over regions n and images. Other images play no part.

    Args:
        p: (B, N, D) predictions.
        z: (B, N, D) projections of the other view; a gradient flows here too.
        tau: temperature, above 0.
        weight: (B,) weights of the images; all 1 by default.

    Returns:
        A scalar, float32 (float64 for float64); ln N where all regions look alike.
    """
    # A half type's rounding of the cosines would be multiplied by 1 / tau.
    with torch.autocast(p.device.type, enabled=False):
        p, z = (t if t.dtype == torch.float64 else t.float() for t in (p, z))
        cosines = F.normalize(p, dim=-1) @ F.normalize(z, dim=-1).mT
        losses = -(cosines / tau).log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1)
        return weighted_mean(losses, weight)


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Average each image's values, then the images by their weights.

    Args:
        values: (B, N, *), as many for each image.
        weight: (B,) weights of the images, float or bool, not negative; all 1 by default.

    Returns:
        A scalar: sum(w v) / sum(w x values of an image); 0 where the weights sum to 0.
    """
    if weight is None:
        weight = values.new_ones(values.shape[0])
    weight = weight.to(values.dtype)
    weighted = (values.flatten(1).mean(dim=1) * weight).sum()
    total = weight.sum()
    return weighted / total.where(total > 0, 1)
