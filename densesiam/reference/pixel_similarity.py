"""Similarity of the predictor's output to the other view's projection, pixel by pixel."""

from typing import Literal

import torch
from torch import Tensor

from densesiam.reference.numerics import compute_dtype


def pixel_similarity(
    p: Tensor,
    z: Tensor,
    kind: Literal["cosine", "cross_entropy"] = "cosine",
    weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    r"""Loss D(p, sg(z)) between a prediction and a target, both over channels.

    ``"cosine"``: :math:`-\frac{p}{\max(|p|, 10^{-8})} \cdot \frac{z}{\max(|z|, 10^{-8})}`, in
    [-1, 1]. Its value is that of minus ``F.cosine_similarity``. Its gradient is that of this very
    formula: below the clamp the norm is constant, where PyTorch's function lets the gradient flow
    through the norm it has replaced.

    ``"cross_entropy"``: :math:`-\sum_c \mathrm{softmax}(z)_c \log \mathrm{softmax}(p)_c`, at least
    the entropy of softmax(z).

    Args:
        p: (B, C, *) predictions. The only argument to receive a gradient.
        z: (B, C, *) targets, of p's shape.
        kind: The loss.
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
        losses = _LOSSES[kind](p, z)
        return losses if reduction == "none" else losses.sum() / max(losses.numel(), 1)

    # Zeros in place of the images that do not count: 0 * NaN is NaN, forward and backward.
    counts = (weight != 0).view(-1, *[1] * (p.ndim - 1))
    losses = _LOSSES[kind](torch.where(counts, p, 0), torch.where(counts, z, 0))
    weights = weight.detach().to(dtype).view(-1, *[1] * (losses.ndim - 1)).expand_as(losses)
    losses = weights * losses
    if reduction == "none":
        return losses
    # An infinite divisor makes the empty mean 0, and its gradient too.
    total = weights.sum()
    return losses.sum() / torch.where(total == 0, torch.inf, total)


def _cosine(p: Tensor, z: Tensor) -> Tensor:
    return -(p / _clamped_norm(p) * (z / _clamped_norm(z))).sum(dim=1)


def _clamped_norm(vectors: Tensor) -> Tensor:
    # Clamped before the root: a zero vector then has finite derivatives of every order.
    return vectors.square().sum(dim=1, keepdim=True).clamp(min=1e-16).sqrt()


def _cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    return -(z.softmax(dim=1) * p.log_softmax(dim=1)).sum(dim=1)


_LOSSES = {"cosine": _cosine, "cross_entropy": _cross_entropy}
