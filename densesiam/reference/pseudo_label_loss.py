"""Hard cross-entropy toward the network's own labels."""

from typing import Literal

import torch
from torch import Tensor

from densesiam.reference._numerics import compute_dtype, count, first_argmax


def pseudo_label_loss(
    logits: Tensor,
    targets: Tensor | None = None,
    rebalance: Literal["none", "frequency", "inverse"] = "none",
    counts: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
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

    Returns:
        ``"none"``: (B, *), the weighted losses. ``"mean"``: their plain mean, not divided by the
        sum of weights; 0 for an empty batch. float32, or float64 for float64.
    """
    dtype = compute_dtype(logits)
    labels = first_argmax((logits if targets is None else targets).detach())
    log_probabilities = logits.to(dtype).log_softmax(dim=1)
    losses = -log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    if rebalance != "none":
        n = (count(labels, logits.shape[1]) if counts is None else counts.detach()).to(dtype)
        losses = losses * _class_weights(n, rebalance)[labels]
    return losses if reduction == "none" else losses.sum() / max(losses.numel(), 1)


def _class_weights(n: Tensor, rebalance: Literal["frequency", "inverse"]) -> Tensor:
    present = n > 0
    weights = {
        "frequency": n / n.sum(),
        "inverse": n.sum() / (present.sum() * n),
    }[rebalance]
    return torch.where(present, weights, 0)
