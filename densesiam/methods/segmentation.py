"""DenseSiam for unsupervised semantic segmentation: the projector's channels are categories."""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from densesiam import ops
from densesiam.methods.losses.assignment import assignment_statistics, label_counts
from densesiam.methods.losses.early import early_gradients, gradient_scale
from densesiam.methods.losses.region import RegionStart
from densesiam.methods.segmenter import Segmenter
from densesiam.models import Predictor, Projector
from densesiam.nn import RegionSim, weighted_mean


class DenseSiamSegmentation(Segmenter):
    r"""Learn to segment images without labels, after Zhang et al. (ECCV 2022).

    Two views of an image pass through the encoder. View 2's features are brought to view 1's frame
    by one bilinear sampling, so that the same pixel shows the same point. Then z = projector(f)
    are logits over K categories, and p = predictor(z). The loss is the weighted sum of

    - ``sim`` (PixSim): :math:`\frac12 D(p_1, z_2) + \frac12 D(p_2, z_1)`, D the soft cross-entropy
      toward the other view's assignment, which receives no gradient;
    - ``aux``: the same with heads of their own over more categories;
    - ``pseudo_label``: the hard cross-entropy of z toward argmax z, the mean of both views;
    - ``region`` (`RegionSim`): a contrast between an image's soft regions, late in training.

    z segments: `segment`.

    Defaults are those of the authors' release, its faults mended. ``rebalance="frequency"``
    restores the one fault that lies in the method. (The others lie in the views, and in the
    evaluation.)

    Pairs count only where view 1 lies within view 2; ``train/valid_pairs`` shows their share.
    Under distributed data parallelism use ``find_unused_parameters``: before RegionSim starts, its
    heads learn nothing.

    Attributes:
        evaluator: what scores segmentations during validation, to be set before it: takes
            (logits, labels) and computes a dict, as `densesiam.evaluation.ClusterMetrics` does.

    Args:
        num_classes: K, the categories.
        aux_classes: categories of the over-clustering heads; None for no such heads.
        sim_weight: weight of PixSim. By default ln K' / (ln K + ln K') with K' the aux_classes,
            under which both similarity losses count the same at the start; 1 if aux is off.
        aux_weight: weight of over-clustering, ln K / (ln K + ln K') by default.
        pseudo_label_weight: weight of the pseudo-label loss.
        region_weight: weight of RegionSim.
        region_start: when RegionSim starts: an int is an epoch (counted from 0), a float below 1 a
            share of the training.
        rebalance: class weights of the pseudo-label loss, see `ops.pseudo_label_loss`.
        pseudo_label_view: ``"same"``, each view learns its own labels, as released; ``"cross"``,
            each learns the other's.
        hidden_channels: width of all heads.
        tau: temperature of the region contrast.
        region_stop_gradient: keep the region contrast's targets from learning.
        stop_gradient: keep the targets of PixSim and over-clustering from learning, as the method
            does. False is there to see what that guards against (docs/collapse.md).
        normalize_z: end the projectors in a normalisation without scale and shift, as the method
            does; the other guard.
        **options: the arguments of `Method`, and so of `Encoder`.

    Raises:
        ValueError: an argument out of its range, or no loss at all.
    """

    learns_in_bfloat16 = True

    def __init__(
        self,
        num_classes: int = 27,
        aux_classes: int | None = 128,
        sim_weight: float | None = None,
        aux_weight: float | None = None,
        pseudo_label_weight: float = 1.0,
        region_weight: float = 0.1,
        region_start: int | float = 0.8,
        rebalance: Literal["none", "frequency", "inverse"] = "none",
        pseudo_label_view: Literal["same", "cross"] = "same",
        hidden_channels: int = 128,
        tau: float = 0.1,
        region_stop_gradient: bool = False,
        stop_gradient: bool = True,
        normalize_z: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, **options)
        self.weights = _loss_weights(
            num_classes, aux_classes, sim_weight, aux_weight, pseudo_label_weight, region_weight
        )
        _check_choice("rebalance", rebalance, ("none", "frequency", "inverse"))
        _check_choice("pseudo_label_view", pseudo_label_view, ("same", "cross"))
        only_region = not any(self.weights[name] for name in ("sim", "aux", "pseudo_label"))
        self.region_start = RegionStart(region_start, alone=only_region)
        self.rebalance = rebalance
        self.pseudo_label_view = pseudo_label_view
        self.stop_gradient = stop_gradient

        channels = self.encoder.out_channels
        self.projector = Projector(
            channels, hidden_channels, num_classes, normalize_output=normalize_z
        )
        # Only what a loss will use: data parallelism would wait for the gradients of the rest.
        if self.weights["sim"]:
            self.predictor = Predictor(num_classes, hidden_channels)
        if self.weights["aux"]:
            assert aux_classes is not None
            self.aux_projector = Projector(
                channels, hidden_channels, aux_classes, normalize_output=normalize_z
            )
            self.aux_predictor = Predictor(aux_classes, hidden_channels)
        if self.weights["region"]:
            self.region = RegionSim(channels, hidden_channels, tau, region_stop_gradient)

    # Inference

    def forward(self, images: Tensor) -> Tensor:
        """Compute z, logits over the categories.

        Args:
            images: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            (B, K, H / stride, W / stride), the encoder's stride, rounded up.
        """
        return self.projector(self.encoder(images))

    # Training

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute the weighted sum of all losses, and log them.

        Args:
            batch: ``view1``, ``view2`` (B, 3, h, w) normalised images; ``crop1``, ``crop2`` (B, 4)
                and ``flip1``, ``flip2`` (B,), where they lie (see `densesiam.geometry`).
        """
        features1, features2, weight = self.aligned_features(batch)
        losses, z1, z2 = self.losses(features1, features2, weight)
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        logged = {
            "loss": total,
            **losses,
            **assignment_statistics(z1, z2, weight),
            "valid_pairs": weight.float().mean(),
        }
        self.log_step(logged, weight.shape[0])
        return total

    def losses(
        self, features1: Tensor, features2: Tensor, weight: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Compute each loss that has a weight, unweighted; no other.

        Args:
            features1: (B, C, H, W) features of view 1.
            features2: features of view 2, aligned with them.
            weight: (B,) weights of the pairs.

        Returns:
            losses: scalars by name.
            z1: (B, K, H, W) projections of features1, without gradient.
            z2: projections of features2.
        """
        losses = {}
        # The widest heads first: their maps are gone before those of the others are there.
        if self.weights["aux"]:
            losses["aux"] = early_gradients(
                lambda f1, f2: self._pixel_loss(
                    self.aux_predictor, self.aux_projector(f1), self.aux_projector(f2), weight
                ),
                [features1, features2],
                [self.aux_projector, self.aux_predictor],
                gradient_scale(self),
            )
        z1, z2 = self.projector(features1), self.projector(features2)
        losses |= self.category_losses(features1, features2, z1, z2, weight)
        return losses, z1.detach(), z2.detach()

    def category_losses(
        self, features1: Tensor, features2: Tensor, z1: Tensor, z2: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses over the K categories: all but ``aux``.

        Args:
            features1: (B, C, H, W) features of view 1.
            features2: features of view 2, aligned with them.
            z1: (B, K, H, W) projections of features1.
            z2: projections of features2.
            weight: (B,) weights of the pairs.

        Returns:
            Scalars by name.
        """
        losses = {}
        if self.weights["sim"]:
            losses["sim"] = self._pixel_loss(self.predictor, z1, z2, weight)
        if self.weights["pseudo_label"]:
            teacher1, teacher2 = (z1, z2) if self.pseudo_label_view == "same" else (z2, z1)
            losses["pseudo_label"] = 0.5 * (
                self._pseudo_label_loss(z1, teacher1, weight)
                + self._pseudo_label_loss(z2, teacher2, weight)
            )
        if self.weights["region"] and self.region_active:
            losses["region"] = self.region(features1, z1, features2, z2, weight)
        return losses

    def _pixel_loss(self, predictor: Predictor, z1: Tensor, z2: Tensor, weight: Tensor) -> Tensor:
        """Half D(p1, z2) plus half D(p2, z1), with D the soft cross-entropy."""

        def toward(z: Tensor, target: Tensor) -> Tensor:
            if not self.stop_gradient:
                return _unstopped_cross_entropy(predictor(z), target, weight)
            return ops.pixel_similarity(predictor(z), target, kind="cross_entropy", weight=weight)

        scale = gradient_scale(self)
        return 0.5 * (
            early_gradients(toward, [z1, z2], [predictor], scale)
            + early_gradients(toward, [z2, z1], [predictor], scale)
        )

    def _pseudo_label_loss(self, z: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        counts = None  # the operation's own, but where processes share them
        if self.rebalance != "none" and dist.is_available() and dist.is_initialized():
            counts = label_counts(teacher.argmax(dim=1), self.num_classes, weight)
            dist.all_reduce(counts)
        targets = None if teacher is z else teacher
        return ops.pseudo_label_loss(z, targets, self.rebalance, counts, weight=weight)

    @property
    def region_active(self) -> bool:
        """Whether RegionSim has started."""
        return self.region_start.reached(self)

    def on_fit_start(self) -> None:
        """Refuse a training that would be over before RegionSim starts."""
        if self.weights["region"]:
            self.region_start.check_reachable(self.trainer)

    def on_train_start(self) -> None:
        """The same, where the start is a share of the steps, which are known only now."""
        super().on_train_start()
        if self.weights["region"]:
            self.region_start.check_share(self._schedule.steps)


def _unstopped_cross_entropy(p: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    """The soft cross-entropy toward z, which learns too: what `ops.pixel_similarity` rules out."""
    return weighted_mean(-(z.softmax(dim=1) * p.log_softmax(dim=1)).sum(dim=1), weight)


def _loss_weights(
    num_classes: int,
    aux_classes: int | None,
    sim: float | None,
    aux: float | None,
    pseudo_label: float,
    region: float,
) -> dict[str, float]:
    """Complete the loss weights by the rule of class counts, and check them."""
    for name, classes in (("num_classes", num_classes), ("aux_classes", aux_classes)):
        if classes is not None and classes < 2:
            raise ValueError(f"{name} must be at least 2 categories, got {classes}")
    if aux_classes is None and aux:
        raise ValueError(f"aux_weight={aux} without over-clustering heads: give aux_classes")
    if aux_classes is None or aux == 0:
        share = 1.0
    else:
        share = math.log(aux_classes) / (math.log(num_classes) + math.log(aux_classes))
    weights = {
        "sim": share if sim is None else sim,
        "aux": 1 - share if aux is None else aux,
        "pseudo_label": pseudo_label,
        "region": region,
    }
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name}_weight must be finite and not negative, got {weight}")
    if not any(weights.values()):
        raise ValueError("all loss weights are 0, so there is nothing to learn")
    return weights


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
