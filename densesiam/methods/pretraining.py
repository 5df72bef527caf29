"""DenseSiam for representation learning: train a backbone without labels, to be used elsewhere."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from densesiam import ops
from densesiam.geometry import overlap_boxes
from densesiam.methods.base import Method
from densesiam.methods.losses.early import early_gradients, gradient_scale
from densesiam.methods.losses.region import RegionStart
from densesiam.models import Predictor, Projector
from densesiam.nn import RegionSim

_Pair = tuple[Tensor, Tensor]  # of view 1 and of view 2


class DenseSiamPretraining(Method):
    r"""Pre-train an encoder on unlabelled images, after Zhang et al. (ECCV 2022).

    Two random crops of an image pass through the encoder. The loss is
    :math:`L = L_\mathrm{sim} + \lambda_1 L_\mathrm{dense} + \lambda_2 L_\mathrm{region}`
    (equation 7 of the paper):

    - ``sim``, the global branch: SimSiam on the average of a view's features,
      :math:`\frac12 D(p_1, z_2) + \frac12 D(p_2, z_1)` with z = projector(f), p = predictor(z), D
      minus the cosine, and no gradient to z;
    - ``dense`` (PixSim): the same on K x K points of the crops' overlap, which show the same
      places in both views, with heads of their own made of 1x1 convolutions;
    - ``region`` (`RegionSim`): a contrast between an image's soft regions, pooled over the points.

    With ``lambda1 = lambda2 = 0`` this is SimSiam, and nothing dense is built or computed.

    The paper gives the equations. It was published without the code of this half, and what could
    not be read in it is our choice, marked *ours* below and in docs/pretraining.md.

    Pairs whose crops do not overlap count in no loss over the overlap; ``train/valid_pairs`` shows
    the share of those that do. With several processes each averages over its own pairs. Under
    distributed data parallelism use ``find_unused_parameters``: before RegionSim starts, its heads
    learn nothing.

    Args:
        lambda1: weight of PixSim. (Ours: 1.)
        lambda2: weight of RegionSim. (Ours: 0.1, as released for segmentation.)
        region_start: when RegionSim starts: an int is an epoch (counted from 0), a float below 1 a
            share of the training. The paper finds mid-training best. (Ours: at half of it.)
        grid: K, points along each axis of the overlap, at the centres of K x K cells. (Ours: 7.)
        sample_at: what is sampled there: the ``"encoder"``'s features, the dense ``"projector"``'s
            output or the dense ``"predictor"``'s. (Ours: the projector's.)
        similarity: PixSim's D: ``"cosine"`` (equation 2), the paper's for pre-training, or
            ``"cross_entropy"`` (equation 3).
        global_extent: what the global branch averages over: the whole ``"image"``, that is each
            view, or the ``"overlap"`` alone, which collapses, says the paper. (Ours: how the
            overlap is averaged, over as many points as the map has.)
        num_regions: regions of RegionSim, from z by one more 1x1 convolution and normalisation
            (ours); None for z's own channels, as equation 4 is written, 2048 with the defaults.
        hidden_channels: width of both projectors, and channels of z.
        predictor_channels: hidden width of both predictors.
        region_channels: width of RegionSim's heads. (Ours: 128, as released for segmentation.)
        tau: temperature of the region contrast.
        region_stop_gradient: keep the region contrast's targets from learning.
        fix_predictor_lr: keep the learning rate of the two predictors at its height, without
            warm-up and schedule, as SimSiam does.
        schedule: see `Method`.
        backbone: see `Encoder`.
        strides: see `Encoder`.
        fpn: see `Encoder`.
        **options: the other arguments of `Method`, and so of `Encoder`.

    Raises:
        ValueError: an argument out of its range.
    """

    kind = "pre-training"
    learns_in_bfloat16 = True

    def __init__(
        self,
        lambda1: float = 1.0,
        lambda2: float = 0.1,
        region_start: int | float = 0.5,
        grid: int = 7,
        sample_at: Literal["encoder", "projector", "predictor"] = "projector",
        similarity: Literal["cosine", "cross_entropy"] = "cosine",
        global_extent: Literal["image", "overlap"] = "image",
        num_regions: int | None = 128,
        hidden_channels: int = 2048,
        predictor_channels: int = 512,
        region_channels: int = 128,
        tau: float = 0.1,
        region_stop_gradient: bool = False,
        fix_predictor_lr: bool = True,
        schedule: Literal["fixed", "cosine"] = "cosine",
        backbone: str = "resnet50",
        strides: Sequence[int] = (32,),
        fpn: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(schedule=schedule, backbone=backbone, strides=strides, fpn=fpn, **options)
        self.weights = {"sim": 1.0, "dense": lambda1, "region": lambda2}
        for name, weight in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {weight}")
        for name, value, choices in (
            ("sample_at", sample_at, ("encoder", "projector", "predictor")),
            ("similarity", similarity, ("cosine", "cross_entropy")),
            ("global_extent", global_extent, ("image", "overlap")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name, least, count in (("grid", 1, grid), ("num_regions", 2, num_regions)):
            if count is not None and count < least:
                raise ValueError(f"{name} must be at least {least}, got {count}")
        self.region_start = RegionStart(region_start, alone=False)
        self.grid = grid
        self.sample_at = sample_at
        self.similarity: Literal["cosine", "cross_entropy"] = similarity
        self.global_extent = global_extent
        self.fix_predictor_lr = fix_predictor_lr

        channels = self.encoder.out_channels
        self.projector = Projector(channels, hidden_channels, hidden_channels, dense=False)
        self.predictor = Predictor(hidden_channels, predictor_channels, dense=False)
        # Only what a loss will use: data parallelism would wait for the gradients of the rest.
        if lambda1 or lambda2:
            self.dense_projector = Projector(channels, hidden_channels, hidden_channels)
        if lambda1:
            self.dense_predictor = Predictor(hidden_channels, predictor_channels)
        if lambda2:
            self.region_logits: nn.Module = (
                nn.Identity()
                if num_regions is None
                else nn.Sequential(
                    nn.Conv2d(hidden_channels, num_regions, kernel_size=1, bias=False),
                    nn.BatchNorm2d(num_regions, affine=False),
                )
            )
            self.region = RegionSim(channels, region_channels, tau, region_stop_gradient)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images; see `Encoder.forward`."""
        return self.encoder(images)

    def fixed_rate_parameters(self) -> Iterator[Parameter]:
        """The predictors' parameters, where they are to keep their learning rate."""
        if self.fix_predictor_lr:
            yield from self.predictor.parameters()
            if self.weights["dense"]:
                yield from self.dense_predictor.parameters()

    def on_fit_start(self) -> None:
        """Refuse a training that would be over before RegionSim starts."""
        if self.weights["region"]:
            self.region_start.check_reachable(self.trainer)

    def on_train_start(self) -> None:
        """The same, where the start is a share of the steps, which are known only now."""
        super().on_train_start()
        if self.weights["region"]:
            self.region_start.check_share(self._schedule.steps)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute the weighted sum of all losses, and log them.

        Args:
            batch: ``view1``, ``view2`` (B, 3, h, w) normalised images; ``crop1``, ``crop2`` (B, 4)
                and ``flip1``, ``flip2`` (B,), where they lie (see `densesiam.geometry`).
        """
        boxes1, boxes2, valid = overlap_boxes(
            batch["crop1"], batch["crop2"], batch["flip1"], batch["flip2"]
        )
        # One after the other: each view is normalised by its own statistics.
        features1, features2 = self.encoder(batch["view1"]), self.encoder(batch["view2"])
        losses = self.losses(features1, features2, boxes1, boxes2, valid)
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        logged = {"loss": total, **losses, "valid_pairs": valid.float().mean()}
        self.log_step(logged, valid.shape[0])
        return total

    def losses(
        self, features1: Tensor, features2: Tensor, boxes1: Tensor, boxes2: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """Compute each loss that has a weight and has started, unweighted; no other.

        Args:
            features1: (B, C, H, W) of view 1.
            features2: (B, C, H', W') of view 2.
            boxes1: (B, 4) the overlap in fractions of view 1.
            boxes2: (B, 4) the overlap in fractions of view 2.
            valid: (B,) bool, whether there is an overlap.

        Returns:
            Scalars by name.
        """
        features, boxes = (features1, features2), (boxes1, boxes2)
        losses = {"sim": self._global_loss(features, boxes, valid)}
        dense = self.weights["dense"] > 0
        region = self.weights["region"] > 0 and self.region_start.reached(self)
        if not dense and not region:
            return losses

        if self.sample_at == "encoder":
            features = self._points(features, boxes)
        z = _of_both(self.dense_projector, features)
        if self.sample_at == "projector":
            z = self._points(z, boxes)
        if region:
            # First, and with its gradients at once: pooled regions can be larger than the maps.
            points, logits = features, z
            if self.sample_at != "encoder":
                points = self._points(features, boxes)
            if self.sample_at == "predictor":
                logits = self._points(z, boxes)
            losses["region"] = early_gradients(
                lambda f1, z1, f2, z2: self.region(
                    f1, self.region_logits(z1), f2, self.region_logits(z2), valid
                ),
                [points[0], logits[0], points[1], logits[1]],
                [self.region_logits, self.region],
                gradient_scale(self),
            )
        if dense:
            losses["dense"] = self._dense_loss(z, boxes, valid)
        return losses

    def _points(self, maps: _Pair, boxes: _Pair) -> _Pair:
        """GridSample: (B, C, K, K) of both views' maps, the same places of the image in both."""
        return (
            ops.overlap_sample(maps[0], boxes[0], self.grid),
            ops.overlap_sample(maps[1], boxes[1], self.grid),
        )

    def _global_loss(self, features: _Pair, boxes: _Pair, valid: Tensor) -> Tensor:
        """SimSiam on the views' averages, over all of a view or over the overlap."""
        weight = None
        if self.global_extent == "overlap":
            weight = valid
            features = (
                ops.overlap_sample(features[0], boxes[0], _size(features[0])),
                ops.overlap_sample(features[1], boxes[1], _size(features[1])),
            )
        z1, z2 = _of_both(self.projector, [maps.mean(dim=(2, 3)) for maps in features])
        p1, p2 = _of_both(self.predictor, (z1, z2))
        return 0.5 * (
            ops.pixel_similarity(p1, z2, weight=weight)
            + ops.pixel_similarity(p2, z1, weight=weight)
        )

    def _dense_loss(self, z: _Pair, boxes: _Pair, valid: Tensor) -> Tensor:
        """PixSim, on points, or on maps of which points are taken after the predictor."""
        p = _of_both(self.dense_predictor, z)
        if self.sample_at == "predictor":
            K, D = self.grid, self.similarity
            return 0.5 * (
                ops.overlap_similarity(p[0], z[1], boxes[0], boxes[1], K, D, valid)
                + ops.overlap_similarity(p[1], z[0], boxes[1], boxes[0], K, D, valid)
            )
        return 0.5 * (
            ops.pixel_similarity(p[0], z[1], self.similarity, valid)
            + ops.pixel_similarity(p[1], z[0], self.similarity, valid)
        )


def _of_both(head: Projector | Predictor, views: Sequence[Tensor]) -> _Pair:
    """Apply a head to both views, at once if they are of one size.

    It has far more weights here than a view has features.
    """
    first, second = views
    if first.shape != second.shape:
        return head(first), head(second)
    first, second = head(torch.cat([first, second]), views=2).chunk(2)
    return first, second


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[2], maps.shape[3]
