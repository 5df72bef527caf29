"""PiCIE: segmentation by clustering, the baseline that DenseSiam is measured against."""

import copy
import itertools
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from densesiam import ops
from densesiam.methods.losses.assignment import assignment_statistics
from densesiam.methods.losses.clustering import MiniBatchKMeans
from densesiam.methods.segmenter import Segmenter
from densesiam.models import Encoder


class PiCIE(Segmenter):
    r"""Segment by clustering what two views agree on, after Cho et al. (CVPR 2021).

    Views as for DenseSiam: the same pixel shows the same point. Before each epoch, mini-batch
    k-means over all training features, for each view apart, gives centroids
    :math:`\mu^{(1)}, \mu^{(2)}`. For the length of the epoch they are the weights of a classifier
    without parameters, :math:`-\|f - \mu_k\|^2`, and label every pixel by the encoder as it was
    at the epoch's start. The loss is the sum of

    - ``within``: cross-entropy of each view's features toward its own labels, by its own centroids;
    - ``cross``: the same toward the other view's labels, by the other's centroids,

    each the mean of both views, the classes weighted by the inverse of their frequency.

    What of the original is simplified: labels are computed anew in each step by a frozen copy of
    the encoder, instead of being stored (the same labels, for a forward pass more); the optimiser
    is `Method`'s SGD; there are no over-clustering heads; the views are DenseSiam's, of which only
    view 1 is cropped and mirrored. So is what it costs: a pass of clustering over the training
    images for every epoch.

    The second view's centroids segment: like the images to segment, it is neither cropped nor
    mirrored. They are renewed after the epoch's last step, so that they fit the encoder.

    Args:
        num_classes: K, the clusters.
        metric: ``"cosine"`` brings features and centroids to length 1, ``"euclidean"`` takes them
            as they are.
        rebalance: class weights: by the ``"inverse"`` of the clusters' sizes, or ``"none"``.
        cluster_batches: batches to cluster; None for all of an epoch.
        **options: the arguments of `Method`, and so of `Encoder`.

    Raises:
        ValueError: an argument out of its range.
    """

    _LABELLER: ClassVar = "densesiam_labeller"

    centroids: Tensor  # (2, K, C): of view 1, of view 2
    counts: Tensor  # (2, K) int64: features of each cluster; all 0 before the first clustering

    def __init__(
        self,
        num_classes: int = 27,
        metric: Literal["cosine", "euclidean"] = "cosine",
        rebalance: Literal["none", "inverse"] = "inverse",
        cluster_batches: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, **options)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 categories, got {num_classes}")
        for name, value, choices in (
            ("metric", metric, ("cosine", "euclidean")),
            ("rebalance", rebalance, ("none", "inverse")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if cluster_batches is not None and cluster_batches < 1:
            raise ValueError(f"cluster_batches must be at least 1, got {cluster_batches}")
        self.weights = {"within": 1.0, "cross": 1.0}
        self.metric = metric
        self.rebalance: Literal["none", "inverse"] = rebalance
        self.cluster_batches = cluster_batches
        channels = self.encoder.out_channels
        self.register_buffer("centroids", torch.zeros(2, num_classes, channels))
        self.register_buffer("counts", torch.zeros(2, num_classes, dtype=torch.int64))
        self._labeller: list[Encoder] = []  # in a list: it is no part of the model
        self._resumed_labeller: dict[str, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits over the clusters; see `Segmenter`."""
        return self.logits(self.encoder(images), self.centroids[1])

    def logits(self, features: Tensor, centroids: Tensor) -> Tensor:
        r"""Classify features (B, C, H, W) by their distance to centroids (K, C).

        Returns:
            (B, K, H, W): :math:`-\|f - \mu_k\|^2` up to :math:`\|f\|^2`, the same for all k.
        """
        features = self._placed(features)
        centroids = centroids.to(features.dtype)
        bias = -centroids.square().sum(dim=1)
        return F.conv2d(features, 2 * centroids[:, :, None, None], bias)

    def _placed(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) if self.metric == "cosine" else features

    # Clustering

    @torch.no_grad()
    def cluster(self, batches: Any) -> None:
        """Find the centroids of both views' features, with the encoder in evaluation mode.

        Args:
            batches: of training, as for `training_step`; their number the same in all processes.
        """
        self._freeze_labeller()
        both = [MiniBatchKMeans(self.num_classes, unit=self.metric == "cosine") for _ in range(2)]
        for batch in itertools.islice(batches, self.cluster_batches):
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            features = self.aligned_features(batch, self._labeller[0])[:2]
            for kmeans, maps in zip(both, features, strict=True):
                # All pairs, even those that do not count: a process without any would stop the
                # others, and their features are features all the same.
                kmeans.update(self._placed(maps.float()).movedim(1, -1).flatten(0, 2))
        self.centroids.copy_(torch.stack([kmeans.centroids for kmeans in both]))
        self.counts.copy_(torch.stack([kmeans.counts for kmeans in both]))

    def _freeze_labeller(self) -> None:
        """Keep the encoder as it is, to label by it."""
        self._labeller = [copy.deepcopy(self.encoder).eval().requires_grad_(False)]

    def _cluster_training_images(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError("PiCIE clusters the training images: give the trainer a data module")
        self.cluster(data.train_dataloader())

    @property
    def _clustered(self) -> bool:
        return bool(self.counts.any())

    def on_train_start(self) -> None:
        """Cluster, or take over the clusters of the checkpoint that training goes on from."""
        super().on_train_start()
        if self._clustered:
            self._freeze_labeller()
            if self._resumed_labeller is not None:
                self._labeller[0].load_state_dict(self._resumed_labeller)
                self._resumed_labeller = None
        else:
            self._cluster_training_images()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Within an epoch, add the encoder as it was at its start."""
        super().on_save_checkpoint(checkpoint)
        if self._labeller and not self.trainer.is_last_batch:
            checkpoint[self._LABELLER] = self._labeller[0].state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take that encoder over."""
        self._resumed_labeller = checkpoint.get(self._LABELLER)

    def on_train_batch_end(self, *_: Any) -> None:
        """Cluster anew at the end of an epoch, before it is validated and saved."""
        if self.trainer.is_last_batch:
            self._cluster_training_images()

    def on_validation_epoch_start(self) -> None:
        """Have clusters to score, even before training."""
        super().on_validation_epoch_start()
        if not self._clustered:
            self._cluster_training_images()

    # Training

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute the sum of both losses, and log them; `batch` as for DenseSiam."""
        features1, features2, weight = self.aligned_features(batch)
        with torch.no_grad():
            old1, old2, _ = self.aligned_features(batch, self._labeller[0])
            teacher1 = self.logits(old1, self.centroids[0])
            teacher2 = self.logits(old2, self.centroids[1])
            # The views' clusters are numbered apart: to compare them, both by the same.
            described = assignment_statistics(
                self.logits(old1, self.centroids[1]), teacher2, weight
            )
        losses = self.losses(features1, features2, teacher1, teacher2, weight)
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        logged = {
            "loss": total,
            **losses,
            **described,
            "valid_pairs": weight.float().mean(),
        }
        self.log_step(logged, weight.shape[0])
        return total

    def losses(
        self,
        features1: Tensor,
        features2: Tensor,
        teacher1: Tensor,
        teacher2: Tensor,
        weight: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the within- and the cross-view loss.

        Args:
            features1: (B, C, H, W) of view 1.
            features2: (B, C, H, W) of view 2, aligned with them.
            teacher1: (B, K, H, W) logits whose argmax labels view 1.
            teacher2: logits whose argmax labels view 2.
            weight: (B,) weights of the pairs.

        Returns:
            Scalars by name.
        """

        def toward(view: int, features: Tensor, teacher: Tensor) -> Tensor:
            """Cross-entropy toward a view's labels, by its centroids."""
            return ops.pseudo_label_loss(
                self.logits(features, self.centroids[view]),
                teacher,
                self.rebalance,
                None if self.rebalance == "none" else self.counts[view],
                weight=weight,
            )

        return {
            "within": 0.5 * (toward(0, features1, teacher1) + toward(1, features2, teacher2)),
            "cross": 0.5 * (toward(1, features1, teacher2) + toward(0, features2, teacher1)),
        }
