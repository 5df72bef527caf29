"""Mini-batch k-means, over all processes together."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

_FIRST_SAMPLE = 16384  # vectors that the first centroids are fitted to, at most


class MiniBatchKMeans:
    """K-means over more vectors than fit into memory, met batch by batch (Sculley, 2010).

    The first batch gives the first centroids, by k-means proper on a sample of it. From then on
    each centroid is the mean of all vectors that were nearest to it when their batch came.

    With several processes each brings its own batches, as many as the others; all hold the same
    centroids.

    Attributes:
        centroids: (K, C) float32, on the vectors' device; of length 1 where `unit`.
        counts: (K,) int64, the vectors that each stands for.

    Args:
        num_clusters: K.
        unit: whether centroids are brought to length 1, as for vectors of that length, whose
            nearest centroid is then that of the largest cosine.
        seed: of the first centroids.
    """

    def __init__(self, num_clusters: int, unit: bool, seed: int = 0) -> None:
        self.num_clusters = num_clusters
        self.unit = unit
        self.seed = seed
        self.centroids = torch.empty(0)
        self.counts = torch.empty(0, dtype=torch.int64)

    def update(self, vectors: Tensor) -> None:
        """Take in a batch of vectors (N, C), float32.

        Raises:
            ValueError: the first batch has fewer vectors than there are clusters.
        """
        if not self.counts.numel():
            self._start(vectors)
        nearest = assign(vectors, self.centroids)
        added = torch.zeros_like(self.counts).scatter_add_(0, nearest, torch.ones_like(nearest))
        sums = torch.zeros_like(self.centroids).index_add_(0, nearest, vectors)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(added)
            dist.all_reduce(sums)
        self.counts += added
        # The mean of all so far, old and new: each vector weighs the same.
        step = (sums - added[:, None] * self.centroids) / self.counts[:, None].clamp(min=1)
        self.centroids = self._placed(self.centroids + step)

    def _start(self, vectors: Tensor) -> None:
        if len(vectors) < self.num_clusters:
            raise ValueError(
                f"{len(vectors)} features do not suffice for {self.num_clusters} clusters; raise "
                "the batch size or lower num_classes"
            )
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(vectors), generator=generator)[:_FIRST_SAMPLE]
        sample = vectors[chosen.to(vectors.device)].cpu().numpy()
        fitted = KMeans(self.num_clusters, n_init=1, random_state=self.seed).fit(sample)
        centroids = torch.from_numpy(fitted.cluster_centers_).to(vectors)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(centroids, src=0)
        self.centroids = self._placed(centroids)
        self.counts = torch.zeros(self.num_clusters, dtype=torch.int64, device=vectors.device)

    def _placed(self, centroids: Tensor) -> Tensor:
        return F.normalize(centroids, dim=1) if self.unit else centroids


def assign(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest of K centroids (K, C) to each of N vectors (N, C): (N,) int64."""
    scores = torch.addmm(-centroids.square().sum(dim=1), vectors, centroids.T, alpha=2)
    return scores.argmax(dim=1)
