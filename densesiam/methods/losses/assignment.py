"""How pixels are spread over categories: what to count, and what to watch."""

import torch
from torch import Tensor

from densesiam.nn import weighted_mean


def label_counts(labels: Tensor, num_classes: int, weight: Tensor) -> Tensor:
    """Count the pixels of each label.

    Args:
        labels: (B, *) labels below num_classes, int64.
        num_classes: K.
        weight: (B,) weights of the images; those of weight 0 do not count, all others do.

    Returns:
        (K,) int64. Integers sum to the same in any order.
    """
    counted = (weight != 0).view(-1, *[1] * (labels.ndim - 1)).expand_as(labels)
    counts = labels.new_zeros(num_classes)
    counts.scatter_add_(0, labels.flatten(), counted.flatten().long())
    return counts


@torch.no_grad()
def assignment_statistics(z1: Tensor, z2: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Describe two views' soft assignments to K categories.

    Args:
        z1: (B, K, H, W) logits of view 1.
        z2: logits of view 2, of the same pixels.
        weight: (B,) weights of the pairs; 0 for those that do not count.

    Returns:
        Scalars:

        - ``usage_perplexity``: exp of the entropy of the hard labels' histogram, both views
          together, in [1, K]: the number of categories in use, counting rare ones for less;
        - ``usage_share``: share of the categories that any pixel has, in [0, 1];
        - ``confidence``: mean over pixels of the largest probability, in [1 / K, 1];
        - ``entropy``: mean entropy of a pixel's assignment in nats, the least value that the soft
          cross-entropy toward these views can take;
        - ``agreement``: share of the pixels whose hard labels agree in both views, in [0, 1].
    """
    labels1, confidence1, entropy1 = _describe(z1)
    labels2, confidence2, entropy2 = _describe(z2)
    K = z1.shape[1]
    counts = label_counts(labels1, K, weight) + label_counts(labels2, K, weight)
    shares = counts / counts.sum().clamp(min=1)
    return {
        "usage_perplexity": torch.special.entr(shares).sum().exp(),
        "usage_share": (counts > 0).float().mean(),
        "confidence": weighted_mean(0.5 * (confidence1 + confidence2), weight),
        "entropy": weighted_mean(0.5 * (entropy1 + entropy2), weight),
        "agreement": weighted_mean((labels1 == labels2).float(), weight),
    }


def _describe(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hard labels, largest probability and entropy of each pixel, (B, H, W) each."""
    log_probabilities = z.float().log_softmax(dim=1)
    largest, labels = log_probabilities.max(dim=1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    return labels, largest.exp(), entropy
