"""Squared distance of the predictor's output and the other view's, normalised, pixel by pixel."""

from typing import Literal

from torch import Tensor

from densesiam.reference._pixel_loss import normalized, pixel_loss


def pixel_l2(
    p: Tensor,
    z: Tensor,
    weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    r"""Squared distance :math:`|u|^2 + |v|^2 - 2 u \cdot v` of u = p / |p| and v = z / |z|.

    Norms are over channels and clamped below at 1e-8. For the arguments and what is returned see
    :func:`densesiam.ops.pixel_l2`.
    """
    return pixel_loss(_squared_distance, p, z, weight, reduction)


def _squared_distance(p: Tensor, z: Tensor) -> Tensor:
    # In this form each term is rounded as the kernels round it, where p and z are alike too.
    return _square(p) + _square(z) - 2 * (normalized(p) * normalized(z)).sum(dim=1)


def _square(vectors: Tensor) -> Tensor:
    # Of the normalised vectors: 1, but below the clamp.
    squares = vectors.square().sum(dim=1)
    return squares / squares.clamp(min=1e-16)
