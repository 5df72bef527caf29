"""RegionSim: the same soft region is the same in both views."""

import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densesiam import ops
from densesiam.methods.losses.averages import weighted_mean
from densesiam.models import Predictor, Projector


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
        weight: Tensor,
    ) -> Tensor:
        """Compute the loss.

        Args:
            features1: (B, C, H, W) features of view 1.
            logits1: (B, N, H, W) logits whose softmax over N assigns its pixels to N regions.
            features2: features of view 2.
            logits2: logits of view 2.
            weight: (B,) weights of the pairs; 0 for those that do not count.

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


class RegionStart:
    """When RegionSim joins a training: it is best started midway, says the paper.

    Args:
        start: an epoch (an int, counted from 0), or a share of the training's steps (a float below
            1).
        alone: whether there is no other loss, so that nothing could be learned before.

    Raises:
        ValueError: it is neither, or RegionSim is alone and starts late.
    """

    def __init__(self, start: int | float, alone: bool) -> None:
        if isinstance(start, bool) or start < 0 or (isinstance(start, float) and not start < 1):
            raise ValueError(
                "region_start must be an epoch (an int from 0) or a share of the training (a "
                f"float from 0 to below 1), got {start!r}; to do without RegionSim set its weight "
                "to 0"
            )
        if alone and start != 0:
            raise ValueError(
                "RegionSim is the only loss, so there is nothing to learn before "
                f"region_start={start}: set it to 0"
            )
        self.start = start

    def reached(self, module: L.LightningModule) -> bool:
        """Whether the module's training has come so far.

        Raises:
            ValueError: the start is a share of a training without end.
        """
        if isinstance(self.start, int):
            return module.current_epoch >= self.start
        if self.start == 0:
            return True
        steps = module.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise ValueError(
                f"region_start={self.start} is a share of the training, which has no end: give "
                "the trainer max_epochs, or region_start as an epoch"
            )
        return module.global_step >= self.start * steps

    def check_reachable(self, trainer: L.Trainer) -> None:
        """Refuse a training that would be over before the start.

        Raises:
            ValueError: the start is an epoch that the training does not reach.
        """
        epochs = trainer.max_epochs or -1
        if isinstance(self.start, int) and 0 < epochs <= self.start:
            raise ValueError(
                f"RegionSim would start at epoch {self.start}, but the training has only epochs 0 "
                f"to {epochs - 1}: lower region_start, or set RegionSim's weight to 0"
            )

    def check_share(self, steps: float) -> None:
        """Refuse a training that has no step left at the start.

        Args:
            steps: of the whole training.

        Raises:
            ValueError: the start is a share of the training that leaves no step.
        """
        if isinstance(self.start, float) and steps - 1 < self.start * steps:
            raise ValueError(
                f"RegionSim would start after {self.start:g} of the training, but that has only "
                f"{steps} steps and none is left then: lower region_start, train longer, or set "
                "RegionSim's weight to 0"
            )


def region_contrast(p: Tensor, z: Tensor, tau: float, weight: Tensor) -> Tensor:
    r"""Let each region of one view find itself among the regions of the other.

    :math:`-\log \mathrm{softmax}_m(\hat p_n \cdot \hat z_m / \tau)` at :math:`m = n`, hats for
    vectors of length 1, averaged over regions n and images. Other images play no part.

    Args:
        p: (B, N, D) predictions.
        z: (B, N, D) projections of the other view; a gradient flows here too.
        tau: temperature, above 0.
        weight: (B,) weights of the images.

    Returns:
        A scalar, float32 (float64 for float64); ln N where all regions look alike.
    """
    # A half type's rounding of the cosines would be multiplied by 1 / tau.
    with torch.autocast(p.device.type, enabled=False):
        p, z = (t if t.dtype == torch.float64 else t.float() for t in (p, z))
        cosines = F.normalize(p, dim=-1) @ F.normalize(z, dim=-1).mT
        losses = -(cosines / tau).log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1)
        return weighted_mean(losses, weight)
