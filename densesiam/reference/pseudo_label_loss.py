"""Hard cross-entropy toward the network's own labels."""

from typing import Literal

import torch
from torch import Tensor

from densesiam.reference._numerics import compute_dtype, count, first_argmax, relative


def pseudo_label_loss(
    logits: Tensor,
    targets: Tensor | None = None,
    rebalance: Literal["none", "frequency", "inverse"] = "none",
    counts: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Weighted cross-entropy :math:`-w_y \log \mathrm{softmax}(logits)_y` toward pseudo-labels.

    The label :math:`y` of a pixel is the argmax over K of ``targets``: the lowest index on a tie,
    and the first NaN if there is one. With :math:`n_c` pixels of label c, N in all, and K' classes
    of :math:`n_c > 0`, the class weight :math:`w_c` is

    - ``"none"``: 1;
    - ``"frequency"``: :math:`n_c / N`, which favours large classes;
    - ``"inverse"``: :math:`N / (K' n_c)`, under which all classes present weigh the same.

    Under both of the last, a class of count 0 has weight 0. That matters only with ``counts``
    given: a label that they call absent adds nothing, rather than infinity.

    Args:
        logits: (B, K, *). The only argument to receive a gradient.
        targets: (B, K, *) logits to take the labels from; ``logits`` by default.
        rebalance: The class weights.
        counts: (K,) the :math:`n_c`, such as those summed over all devices; by default this
            call's own.
        reduction: ``"none"`` or ``"mean"``.
        weight: (B,) float or bool, one weight an image. An image of weight 0 counts nowhere:
            neither in loss, gradient and mean, nor in :math:`n_c`, not even if it holds NaN. Any
            other counts whole in :math:`n_c`.

    Returns:
        ``"none"``: (B, *), each pixel's loss times its class's and its image's weight. ``"mean"``:
        the sum of those divided by the sum of the images' weights over all pixels, not by the
        classes'; 0 where that is 0. float32, or float64 for float64.
    """
    dtype = compute_dtype(logits)
    images = counted = None
    if weight is not None:
        weight = weight.detach().to(dtype)
        counted = (weight != 0).view(-1, *[1] * (logits.ndim - 1))
        weight = relative(weight) if reduction == "mean" else weight
        images = weight.view(counted.shape)
        # Zeros in place of the images that do not count: 0 * NaN is NaN, forward and backward.
        logits = torch.where(counted, logits, 0)
    labels = first_argmax((logits if targets is None else targets).detach())
    K = logits.shape[1]
    log_probabilities = logits.to(dtype).log_softmax(dim=1)
    losses = -log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    if rebalance != "none":
        n = (_own_counts(labels, K, counted) if counts is None else counts.detach()).to(dtype)
        losses = losses * _class_weights(n, rebalance)[labels]
    if images is not None:
        losses = losses * images.squeeze(1)
    if reduction == "none":
        return losses
    if images is None:
        return losses.sum() / max(losses.numel(), 1)
    # An infinite divisor makes the empty mean 0, and its gradient too.
    total = images.squeeze(1).expand_as(losses).sum()
    return losses.sum() / torch.where(total == 0, torch.inf, total)


def _own_counts(labels: Tensor, K: int, counted: Tensor | None) -> Tensor:
    """The labels' counts, (K,), in the images that count."""
    if counted is None:
        return count(labels, K)
    return count(torch.where(counted.squeeze(1), labels, K), K + 1)[:K]


def _class_weights(n: Tensor, rebalance: Literal["frequency", "inverse"]) -> Tensor:
    present = n > 0
    weights = {
        "frequency": n / n.sum(),
        "inverse": n.sum() / (present.sum() * n),
    }[rebalance]
    return torch.where(present, weights, 0)
