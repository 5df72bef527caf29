"""Similarity of the predictor's output to the other view's projection, pixel by pixel."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from densesiam import _layout, reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, select
from densesiam.ops._registry import Operation, kernel, register_operation

KINDS = ("cosine", "cross_entropy")
REDUCTIONS = ("mean", "none")


def _check(
    p: Tensor,
    z: Tensor,
    kind: str = "cosine",
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> None:
    op = "pixel_similarity"
    _checks.check_float(op, "p", p)
    _checks.check_float(op, "z", z)
    if p.dim() < 2 or p.shape[1] == 0:
        raise ValueError(f"{op}: p must be (B, C, *) with C >= 1, got shape {tuple(p.shape)}")
    if p.shape != z.shape:
        raise ValueError(
            f"{op}: p and z must have one shape, got {tuple(p.shape)} and {tuple(z.shape)}"
        )
    _checks.check_same(op, "z", z, "p", p)
    _checks.check_choice(op, "kind", kind, KINDS)
    _checks.check_weight(op, weight, "p", p)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)


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
    p, z = _checks.promoted(p, z.detach())
    backend = select("pixel_similarity", p)
    if backend == "reference":
        return reference.pixel_similarity(p, z, kind, weight, reduction)
    weight = None if weight is None else weight.detach().to(_layout.accumulate_dtype(p))
    forward = kernel(NAMESPACES[backend], "pixel_similarity")
    loss, _ = forward(_layout.flat(p), _layout.flat(z), kind, weight, reduction)
    return loss if reduction == "mean" else loss.view(p.shape[0], *p.shape[2:])


def _fake(
    p: Tensor, z: Tensor, kind: str, weight: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor]:
    batch, _, pixels = p.shape
    dtype = _layout.accumulate_dtype(p)
    loss = p.new_empty([] if reduction == "mean" else [batch, pixels], dtype=dtype)
    return loss, p.new_empty([batch, 2, pixels], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    p, z, kind, weight, reduction = inputs
    _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(p, z, weight, statistics)
    ctx.kind, ctx.reduction = kind, reduction


def _backward(
    ctx: Any, backward: Any, grad: Tensor | None, _statistics: None
) -> tuple[Tensor | None, None, None, None, None]:
    if grad is None or not ctx.needs_input_grad[0]:
        return None, None, None, None, None
    p, z, weight, statistics = ctx.saved_tensors
    grad_p = backward(grad, p, z, ctx.kind, weight, ctx.reduction, statistics)
    return grad_p, None, None, None, None


def _fake_backward(
    grad: Tensor,
    p: Tensor,
    z: Tensor,
    kind: str,
    weight: Tensor | None,
    reduction: str,
    statistics: Tensor,
) -> Tensor:
    return _layout.empty_like(p)


register_operation(
    Operation("pixel_similarity", _fake, _setup_context, _backward, _fake_backward),
)
