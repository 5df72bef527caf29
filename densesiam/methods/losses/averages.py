"""Averages over the pairs of views that count."""

from torch import Tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Average each image's values, then the images by their weights.

    Args:
        values: (B, N, *), as many for each image.
        weight: (B,) weights of the images, float or bool, not negative.

    Returns:
        A scalar: sum(w v) / sum(w x values of an image); 0 where the weights sum to 0.
    """
    weight = weight.to(values.dtype)
    weighted = (values.flatten(1).mean(dim=1) * weight).sum()
    total = weight.sum()
    return weighted / total.where(total > 0, 1)
