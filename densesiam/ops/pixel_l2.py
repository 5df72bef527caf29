"""Squared distance of the predictor's output and the other view's, normalised, pixel by pixel."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from densesiam.ops import _checks, _pixel_loss
from densesiam.ops._operations import register_operation


@_checks.checked(partial(_pixel_loss.check, "pixel_l2"))
def pixel_l2(
    p: Tensor,
    z: Tensor,
    weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    r"""Squared distance of p and z on the unit sphere, both normalised over channels, fused.

    :math:`\left|\frac{p}{|p|} - \frac{z}{|z|}\right|^2`, each norm clamped below at 1e-8, in
    [0, 4]. Equivalent to ``(F.normalize(p) - F.normalize(z.detach())).square().sum(1)``. It is
    rounded in units of its terms, which are 1, not of itself.

    Args:
        p: (B, C, *) predictions, the only argument to receive a gradient.
        z: (B, C, *) targets of p's shape and type.
        weight: (B,) float or bool, one weight an image; see :func:`pixel_similarity`.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        ``"none"``: (B, *). ``"mean"``: a scalar. float32, or float64 for float64.

    Raises:
        TypeError: types that are not floating point, or that differ outside autocast.
        ValueError: shapes or devices that do not fit, or an unknown reduction.
    """
    return _pixel_loss.run("pixel_l2", p, z, weight=weight, reduction=reduction)


register_operation(
    _pixel_loss.operation(
        "pixel_l2",
        usage="pixel_l2(p, z)",
        summary="squared distance of unit vectors, per pixel",
        equivalent=("(F.normalize(p) - F.normalize(z.detach())).square().sum(1).mean()",),
    )
)
