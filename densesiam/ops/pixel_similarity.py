"""Similarity of the predictor's output to the other view's projection, pixel by pixel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from densesiam.ops import _checks, _pixel_loss
from densesiam.ops._operations import register_operation

KINDS = ("cosine", "cross_entropy")


def _check(
    p: Tensor,
    z: Tensor,
    kind: str = "cosine",
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> None:
    op = "pixel_similarity"
    _checks.check_choice(op, "kind", kind, KINDS)
    _pixel_loss.check(op, p, z, weight, reduction)


@_checks.checked(_check)
def pixel_similarity(
    p: Tensor,
    z: Tensor,
    kind: Literal["cosine", "cross_entropy"] = "cosine",
    weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    r"""Loss D(p, sg(z)) between a prediction and a target, both over channels, fused.

    ``"cosine"`` (equation 2 of the paper): :math:`-\frac{p}{|p|} \cdot \frac{z}{|z|}`, each norm
    clamped below at 1e-8, in [-1, 1]. Equivalent to ``-F.cosine_similarity(p, z.detach())``.

    ``"cross_entropy"`` (equation 3): :math:`-\sum_c \mathrm{softmax}(z)_c \log
    \mathrm{softmax}(p)_c`. Equivalent to
    ``F.cross_entropy(p, z.detach().softmax(1), reduction="none")``.

    Args:
        p: (B, C, *) predictions, the only argument to receive a gradient.
        z: (B, C, *) targets of p's shape and type.
        kind: the loss.
        weight: (B,) float or bool, one weight an image. An image of weight 0 counts nowhere, not
            even with NaN in it.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        ``"none"``: (B, *), each pixel's loss times its image's weight. ``"mean"``: the sum of those
        divided by the sum of weights over all pixels; 0 where that is 0. float32, or float64 for
        float64.

    Raises:
        TypeError: types that are not floating point, or that differ outside autocast.
        ValueError: shapes or devices that do not fit, or an unknown kind or reduction.
    """
    op = "pixel_similarity"
    return _pixel_loss.run(op, p, z, kind, weight=weight, reduction=reduction)


register_operation(
    _pixel_loss.operation(
        "pixel_similarity",
        usage="pixel_similarity(p, z, kind)",
        summary="loss toward the other view, per pixel",
        equivalent=(
            "-F.cosine_similarity(p, z.detach()).mean()",
            "F.cross_entropy(p, z.detach().softmax(1))",
        ),
        kind="cross_entropy",
    )
)
