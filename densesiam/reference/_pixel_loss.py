"""What all losses between the channels of two maps share: weights, and the mean."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from densesiam.reference._numerics import compute_dtype, relative


def pixel_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    p: Tensor,
    z: Tensor,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    r"""The loss of p toward z at every pixel, weighted, or its mean.

    Args:
        loss: ``loss(p, z)``: (B, *) losses of p and z (B, C, *), in the type of sums.
        p: (B, C, *) predictions. The only argument to receive a gradient.
        z: (B, C, *) targets, of p's shape.
        weight: (B,) float or bool, one weight an image. An image of weight 0 counts nowhere:
            even NaN in it reaches neither the loss nor a gradient.
        reduction: ``"none"`` or ``"mean"``.

    Returns:
        ``"none"``: (B, *), each pixel's loss times its image's weight. ``"mean"``: a scalar,
        :math:`\sum w l / \sum w`, both sums over pixels; 0 where the weights sum to 0. float32, or
        float64 for float64.
    """
    dtype = compute_dtype(p)
    p, z = p.to(dtype), z.detach().to(dtype)
    if weight is None:
        losses = loss(p, z)
        return losses if reduction == "none" else losses.sum() / max(losses.numel(), 1)

    # Zeros in place of the images that do not count: 0 * NaN is NaN, forward and backward.
    counts = (weight.to(dtype) != 0).view(-1, *[1] * (p.ndim - 1))
    losses = loss(torch.where(counts, p, 0), torch.where(counts, z, 0))
    weight = weight.detach().to(dtype)
    weight = relative(weight) if reduction == "mean" else weight
    weights = weight.view(-1, *[1] * (losses.ndim - 1)).expand_as(losses)
    losses = weights * losses
    if reduction == "none":
        return losses
    # An infinite divisor makes the empty mean 0, and its gradient too.
    total = weights.sum()
    return losses.sum() / torch.where(total == 0, torch.inf, total)


def normalized(vectors: Tensor) -> Tensor:
    """Vectors (B, C, *) divided by their norms over channels, clamped below at 1e-8."""
    # Squares overflow from half the exponents on, so vectors above 3/8 of them are scaled first.
    exponents = math.log2(torch.finfo(vectors.dtype).max)
    large = vectors.detach().abs().amax(dim=1, keepdim=True) > 2 ** (exponents * 3 / 8)
    vectors = torch.where(large, vectors * 2 ** (-exponents * 5 / 8), vectors)
    # Clamped before the root: a zero vector then has finite derivatives of every order.
    least = torch.where(large, 0, vectors.new_full((), 1e-16))
    return vectors / vectors.square().sum(dim=1, keepdim=True).clamp(min=least).sqrt()
