"""Hard cross-entropy toward the network's own labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from densesiam import _layout, reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, select
from densesiam.ops._operations import Operation, register_operation, run_kernel

REBALANCES = ("none", "frequency", "inverse")
REDUCTIONS = ("mean", "none")


def _check(
    logits: Tensor,
    targets: Tensor | None = None,
    rebalance: str = "none",
    counts: Tensor | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> None:
    op = "pseudo_label_loss"
    _checks.check_float(op, "logits", logits)
    if logits.dim() < 2 or logits.shape[1] == 0:
        raise ValueError(
            f"{op}: logits must be (B, K, *) with K >= 1, got shape {tuple(logits.shape)}"
        )
    if targets is not None:
        _checks.check_float(op, "targets", targets)
        if targets.shape != logits.shape:
            raise ValueError(
                f"{op}: targets must have the logits' shape {tuple(logits.shape)}, got "
                f"{tuple(targets.shape)}"
            )
        _checks.check_same(op, "targets", targets, "logits", logits)
    _checks.check_choice(op, "rebalance", rebalance, REBALANCES)
    if counts is not None:
        if not isinstance(counts, Tensor):
            raise TypeError(f"{op}: counts must be a tensor, got {type(counts).__name__}")
        if counts.dtype.is_complex or counts.dtype == torch.bool:
            raise TypeError(f"{op}: counts must be integers or floats, got {counts.dtype}")
        _checks.check_strided(op, "counts", counts)
        if counts.dim() != 1 or counts.shape[0] != logits.shape[1]:
            raise ValueError(
                f"{op}: counts must have shape (K,) = ({logits.shape[1]},), got "
                f"{tuple(counts.shape)}"
            )
        _checks.check_device(op, "counts", counts, "logits", logits)
        _checks.check_constant(op, "counts", counts)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)
    _checks.check_weight(op, weight, "logits", logits)


@_checks.checked(_check)
def pseudo_label_loss(
    logits: Tensor,
    targets: Tensor | None = None,
    rebalance: Literal["none", "frequency", "inverse"] = "none",
    counts: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Weighted cross-entropy :math:`-w_y \log \mathrm{softmax}(logits)_y` toward pseudo-labels.

    The label :math:`y` of a pixel is the argmax over K of ``targets`` (the lowest index on a tie).
    With :math:`n_c` the pixels of label c, N in all, and K' the number of classes present, the
    class weight :math:`w_c` is 1 (``"none"``), :math:`n_c / N` (``"frequency"``, as the authors'
    release has it) or :math:`N / (K' n_c)` (``"inverse"``); a class of count 0 has weight 0 in the
    latter two. Without rebalancing, equivalent to
    ``F.cross_entropy(logits, targets.argmax(1))``.

    Args:
        logits: (B, K, *), the only argument to receive a gradient.
        targets: (B, K, *) logits to take the labels from; ``logits`` by default.
        rebalance: the class weights.
        counts: (K,) the :math:`n_c`; this call's own by default. A distributed method gives those
            summed over all processes.
        reduction: ``"mean"`` or ``"none"``.
        weight: (B,) float or bool, one weight an image. An image of weight 0 counts nowhere, not in
            :math:`n_c` either, whatever it holds; any other counts whole in :math:`n_c`.

    Returns:
        ``"none"``: (B, *), each pixel's loss times its class's and its image's weight. ``"mean"``:
        the sum of those divided by the sum of the images' weights over all pixels, not by the
        classes'; 0 where that is 0. float32, or float64 for float64.

    Raises:
        TypeError: types that are not floating point, or that differ outside autocast.
        ValueError: shapes or devices that do not fit, or an unknown rebalance or reduction.
    """
    if targets is not None:
        logits, targets = _checks.promoted(logits, targets.detach())
    backend = select("pseudo_label_loss", logits)
    if backend == "reference":
        return reference.pseudo_label_loss(logits, targets, rebalance, counts, reduction, weight)
    counts = None if counts is None else counts.detach().to(_layout.accumulate_dtype(logits))
    weight = None if weight is None else weight.detach()
    flat_targets = None if targets is None else _layout.flat(targets)
    flat = _layout.flat(logits), flat_targets
    settings = rebalance, counts, reduction, weight
    loss = run_kernel(NAMESPACES[backend], "pseudo_label_loss", *flat, *settings)[0]
    return loss if reduction == "mean" else loss.view(logits.shape[0], *logits.shape[2:])


def _fake(
    logits: Tensor,
    targets: Tensor | None,
    rebalance: str,
    counts: Tensor | None,
    reduction: str,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, classes, pixels = logits.shape
    dtype = _layout.accumulate_dtype(logits)
    return (
        logits.new_empty([] if reduction == "mean" else [batch, pixels], dtype=dtype),
        logits.new_empty([batch, pixels], dtype=dtype),
        logits.new_empty([batch, pixels], dtype=torch.int32),
        logits.new_empty([classes], dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, _, _, reduction, weight = inputs
    _, log_sum, labels, class_weights = output
    ctx.mark_non_differentiable(log_sum, labels, class_weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, weight, log_sum, labels, class_weights)
    ctx.reduction = reduction


def _backward(
    ctx: Any, backward: Any, grad: Tensor | None, *_statistics: None
) -> tuple[Tensor | None, None, None, None, None, None]:
    if grad is None or not ctx.needs_input_grad[0]:
        return None, None, None, None, None, None
    logits, weight, *kept = ctx.saved_tensors
    grad = backward(grad, logits, ctx.reduction, weight, *kept)
    return grad, None, None, None, None, None


def _fake_backward(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return _layout.empty_like(logits)


register_operation(
    Operation(
        name="pseudo_label_loss",
        schema="(Tensor logits, Tensor? targets, str rebalance, Tensor? counts, str reduction, "
        "Tensor? weight) -> (Tensor, Tensor, Tensor, Tensor)",
        usage="pseudo_label_loss(logits)",
        summary="cross-entropy toward own hard labels",
        equivalent=("F.cross_entropy(logits, logits.argmax(1))",),
        example=lambda make, B, C, H, W: [
            make.features(B, C, H, W),
            make.features(B, C, H, W),
            "inverse",
            None,
            "mean",
            make.weights(B),
        ],
        fake=_fake,
        differentiable=1,
        backward_schema="(Tensor grad, Tensor logits, str reduction, Tensor? weight, "
        "Tensor log_sum, Tensor labels, Tensor class_weights) -> Tensor",
        setup_context=_setup_context,
        backward=_backward,
        fake_backward=_fake_backward,
    )
)
