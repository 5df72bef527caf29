"""Similarity of the predictor's output to the other view's projection, pixel by pixel."""

from typing import Literal

from torch import Tensor

from densesiam.reference._pixel_loss import normalized, pixel_loss


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
    return pixel_loss(_LOSSES[kind], p, z, weight, reduction)


def _cosine(p: Tensor, z: Tensor) -> Tensor:
    return -(normalized(p) * normalized(z)).sum(dim=1)


def _cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    return -(z.softmax(dim=1) * p.log_softmax(dim=1)).sum(dim=1)


_LOSSES = {"cosine": _cosine, "cross_entropy": _cross_entropy}
