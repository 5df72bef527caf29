r"""What DenseSiam has to beat: segmentations that learn little or nothing.

Each maps images to logits over clusters, as a trained model does, so that one loop and one
`ClusterMetrics` score them all.

`ClusterMetrics` enlarges logits bilinearly before it compares them. k-means therefore gives
:math:`2 x \cdot c_k - |c_k|^2`: the negative squared distance to centre k but for :math:`|x|^2`,
which is the same for all k. It is linear in x, and bilinear weights sum to 1, so the largest
enlarged logit is that of the centre nearest to the enlarged features. One-hot logits would
enlarge decisions instead, and break their many ties by the clusters' numbers.
"""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn


class OneClass(nn.Module):
    """Everything is cluster 0: the score of a collapsed model.

    Args:
        num_clusters: K.
    """

    def __init__(self, num_clusters: int) -> None:
        super().__init__()
        self.num_clusters = num_clusters

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, 1, 1) of images (B, 3, H, W): 1 for cluster 0, 0 for the others."""
        logits = images.new_zeros(images.shape[0], self.num_clusters, 1, 1)
        logits[:, 0] = 1
        return logits


class ColourPosition(nn.Module):
    """Features of a pixel that need no network: its colour and its place."""

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 5, H, W) of images (B, 3, H, W): the colours, then x and y in [0, 1]."""
        B, _, H, W = images.shape
        y, x = ((torch.arange(n, device=images.device) + 0.5) / n for n in (H, W))
        place = torch.stack(torch.meshgrid(x, y, indexing="xy")).to(images.dtype)
        return torch.cat([images, place.expand(B, -1, -1, -1)], dim=1)


class KMeans(nn.Module):
    """Mini-batch k-means on features, every channel brought to mean 0 and deviation 1.

    `fit` streams: it holds one batch at a time. Centres and statistics are buffers, so they are
    saved and moved with the module.

    Args:
        features: makes features (B, C, h, w) of images (B, 3, H, W): `ColourPosition`, or an
            `Encoder` with pretrained weights. It is put into evaluation mode, and never trained.
        num_clusters: K.
        seed: of the first centres and of the pixels drawn.
        pixels_per_image: pixels of an image that are drawn from each batch, all if it has no more;
            neighbouring ones tell k-means little new.

    Raises:
        ValueError: an argument below 1.
    """

    mean: Tensor
    deviation: Tensor
    centres: Tensor

    def __init__(
        self, features: nn.Module, num_clusters: int, seed: int = 0, pixels_per_image: int = 1024
    ) -> None:
        super().__init__()
        if min(num_clusters, pixels_per_image) < 1:
            raise ValueError(
                "KMeans: num_clusters and pixels_per_image must be at least 1, "
                f"got {num_clusters}, {pixels_per_image}"
            )
        self.features = features.eval()
        self.num_clusters = num_clusters
        self.seed = seed
        self.pixels_per_image = pixels_per_image
        for name in ("mean", "deviation", "centres"):
            self.register_buffer(name, None)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], passes: int = 2) -> "KMeans":
        """Learn the channels' statistics in one pass, then the centres.

        The first centres are drawn among the first batch, which should therefore be shuffled.

        Args:
            batches: images (B, 3, H, W); gone through 1 + passes times, so not an iterator.
            passes: passes of k-means.

        Returns:
            The module itself.

        Raises:
            ValueError: an iterator, no batch, or fewer pixels than clusters in a batch.
        """
        if isinstance(batches, Iterator):
            raise ValueError(
                "KMeans.fit goes through the batches several times, and an iterator allows only "
                "one: give a list or a data loader"
            )
        scaler = StandardScaler()
        for pixels in self._pixels(batches):
            scaler.partial_fit(pixels)
        if not hasattr(scaler, "mean_"):
            raise ValueError("KMeans.fit: no batch to learn from")
        kmeans = MiniBatchKMeans(self.num_clusters, random_state=self.seed, n_init=1)
        for _ in range(passes):
            for pixels in self._pixels(batches):
                kmeans.partial_fit(scaler.transform(pixels))
        for name, values in (
            ("mean", scaler.mean_),
            ("deviation", scaler.scale_),
            ("centres", kmeans.cluster_centers_),
        ):
            setattr(self, name, torch.as_tensor(values, dtype=torch.float32))
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w), the larger the nearer; see the module's text.

        Raises:
            RuntimeError: before `fit`.
        """
        if self.centres is None:
            raise RuntimeError("KMeans has no centres yet: call fit first")
        x = self.features(images)
        x = (x - self.mean.to(x).view(-1, 1, 1)) / self.deviation.to(x).view(-1, 1, 1)
        centres = self.centres.to(x)
        return F.conv2d(x, 2 * centres[:, :, None, None], -centres.square().sum(dim=1))

    def _pixels(self, batches: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Features of pixels drawn from each batch, (N, C); the same in every pass."""
        generator = torch.Generator().manual_seed(self.seed)
        for images in batches:
            x = self.features(images).flatten(2).cpu()
            count = x.shape[2]
            if count > self.pixels_per_image:
                x = x[:, :, torch.randperm(count, generator=generator)[: self.pixels_per_image]]
            if x.shape[0] * x.shape[2] < self.num_clusters:
                raise ValueError(
                    f"KMeans.fit: a batch of {x.shape[0] * x.shape[2]} pixels is too small for "
                    f"{self.num_clusters} clusters; raise its size or pixels_per_image"
                )
            yield x.transpose(1, 2).flatten(0, 1).numpy().astype(np.float64)


@torch.no_grad()
def settle_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give an untrained network the statistics of its batch normalisations, and nothing else.

    As built, those layers take every channel's mean to be 0 and its deviation 1. An untrained model
    then often puts all pixels into the same few clusters, which says nothing about its weights.
    Afterwards each layer holds the plain average over the batches. Layers that stay in evaluation
    mode when the model trains, as those of a frozen backbone, keep what they have.

    Args:
        model: changed in place, and left in evaluation mode.
        batches: images (B, 3, H, W).
    """
    model.train()
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
    ]
    momenta = [layer.momentum for layer in layers]
    with contextlib.ExitStack() as restore:
        for layer, momentum in zip(layers, momenta, strict=True):
            restore.callback(setattr, layer, "momentum", momentum)
            layer.reset_running_stats()
            layer.momentum = None  # what torch takes for a cumulative average
        for images in batches:
            model(images)
    model.eval()
