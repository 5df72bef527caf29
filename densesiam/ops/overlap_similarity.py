"""Similarity of two views where they overlap: samples and loss in one call.

What the operator keeps for its backward, its second output, is `statistics` (B, 2, Kh Kw), from
which backward computes the samples' gradients once more, or, where `keep` asks for it, these: (B,
Kh, Kw, C) in the type of sums, before weights and upstream gradient. The CPU's kernel alone can
keep them, and its backward takes either.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from densesiam import _layout, reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, runs_cpu_kernels, select
from densesiam.ops._operations import Operation, register_operation, run_kernel
from densesiam.ops._pixel_loss import REDUCTIONS
from densesiam.ops.pixel_similarity import KINDS


def _check(
    p: Tensor,
    z: Tensor,
    boxes_p: Tensor | None,
    boxes_z: Tensor | None,
    size: int | tuple[int, int],
    kind: str = "cosine",
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> None:
    op = "overlap_similarity"
    for name, tensor in (("p", p), ("z", z)):
        _checks.check_float(op, name, tensor)
        _checks.check_dims(op, name, tensor, 4, "(B, C, H, W)")
        if 0 in tensor.shape[1:]:
            raise ValueError(f"{op}: {name} has no values, got shape {tuple(tensor.shape)}")
    if p.shape[:2] != z.shape[:2]:
        raise ValueError(
            f"{op}: p and z must have one batch size and number of channels, got shapes "
            f"{tuple(p.shape)} and {tuple(z.shape)}"
        )
    _checks.check_same(op, "z", z, "p", p)
    if boxes_p is not None:
        _checks.check_boxes(op, "boxes_p", boxes_p, "p", p)
    if boxes_z is not None:
        _checks.check_boxes(op, "boxes_z", boxes_z, "z", z)
    _checks.check_size(op, size)
    _checks.check_choice(op, "kind", kind, KINDS)
    _checks.check_weight(op, weight, "p", p)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)


@_checks.checked(_check)
def overlap_similarity(
    p: Tensor,
    z: Tensor,
    boxes_p: Tensor | None,
    boxes_z: Tensor | None,
    size: int | tuple[int, int],
    kind: Literal["cosine", "cross_entropy"] = "cosine",
    weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """The similarity of two maps at the samples of their overlap, without writing the samples.

    Equivalent to ``pixel_similarity(overlap_sample(p, boxes_p, size), overlap_sample(z, boxes_z,
    size), kind, weight, reduction)``.

    Args:
        p: (B, C, H, W) predictions, the only argument to receive a gradient.
        z: (B, C, H', W') targets of p's type; height and width may differ from p's.
        boxes_p: (B, 4) the overlap in fractions of p, float32 or float64; None is the whole map.
        boxes_z: (B, 4) the same overlap in fractions of z; None is the whole map.
        size: K, or (Kh, Kw): samples a box.
        kind: the loss, see :func:`pixel_similarity`.
        weight: (B,) float or bool, one weight an image; 0 where the views do not meet.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        ``"none"``: (B, Kh, Kw). ``"mean"``: a scalar. float32, or float64 for float64.

    Raises:
        TypeError: types that do not fit; features of two types outside autocast.
        ValueError: shapes, devices, sizes or words that do not fit; on the CPU (elsewhere under
            ``DENSESIAM_CHECK=1``) boxes that are not finite.
    """
    p, z = _checks.promoted(p, z.detach())
    pair = _checks.size_pair(size)
    backend = select("overlap_similarity", p, z, elements=max(2, p.shape[1]) * pair[0] * pair[1])
    if boxes_p is not None:
        boxes_p = _checks.finite_boxes("overlap_similarity", "boxes_p", boxes_p, backend)
    if boxes_z is not None:
        boxes_z = _checks.finite_boxes("overlap_similarity", "boxes_z", boxes_z, backend)
    if backend == "reference":
        grid = (pair[0], pair[1])
        return reference.overlap_similarity(p, z, boxes_p, boxes_z, grid, kind, weight, reduction)
    weight = None if weight is None else weight.detach()
    # An exported program keeps what every device's kernels can do without.
    trains = p.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting()
    loss, _ = run_kernel(
        NAMESPACES[backend],
        "overlap_similarity",
        p,
        z,
        boxes_p,
        boxes_z,
        pair,
        kind,
        weight,
        reduction,
        trains and runs_cpu_kernels(backend),
    )
    return loss


def _check_values(
    p: Tensor, z: Tensor, boxes_p: Tensor | None, boxes_z: Tensor | None, *_: Any
) -> None:
    for name, boxes in (("boxes_p", boxes_p), ("boxes_z", boxes_z)):
        if boxes is not None:
            _checks.require_finite("overlap_similarity", name, boxes)


def _fake(
    p: Tensor,
    z: Tensor,
    boxes_p: Tensor | None,
    boxes_z: Tensor | None,
    size: list[int],
    kind: str,
    weight: Tensor | None,
    reduction: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _layout.accumulate_dtype(p)
    loss = p.new_empty([] if reduction == "mean" else [p.shape[0], *size], dtype=dtype)
    if keep:
        return loss, p.new_empty([p.shape[0], *size, p.shape[1]], dtype=dtype)
    return loss, p.new_empty([p.shape[0], 2, size[0] * size[1]], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    p, z, boxes_p, boxes_z, size, kind, weight, reduction, _ = inputs
    _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(p, z, boxes_p, boxes_z, weight, kept)
    ctx.size, ctx.kind, ctx.reduction = size, kind, reduction


def _backward(
    ctx: Any, backward: Any, grad: Tensor | None, _kept: None
) -> tuple[Tensor | None, ...]:
    no_more = (None,) * 8
    if grad is None or not ctx.needs_input_grad[0]:
        return None, *no_more
    *views, weight, kept = ctx.saved_tensors
    settings = ctx.size, ctx.kind, weight, ctx.reduction
    return backward(grad, *views, *settings, kept), *no_more


def _fake_backward(grad: Tensor, p: Tensor, *_: Any) -> Tensor:
    return _layout.empty_like(p)


register_operation(
    Operation(
        name="overlap_similarity",
        schema="(Tensor p, Tensor z, Tensor? boxes_p, Tensor? boxes_z, SymInt[] size, str kind, "
        "Tensor? weight, str reduction, bool keep) -> (Tensor, Tensor)",
        usage="overlap_similarity(p, z, boxes_p, boxes_z, size)",
        summary="the two above in one call",
        equivalent=("pixel_similarity(overlap_sample(...), overlap_sample(...))",),
        example=lambda make, B, C, H, W: [
            make.features(B, C, H, W),
            make.features(B, C, max(H - 1, 1), W),  # they may differ in size
            make.boxes(B),
            None,
            (3, 5),
            "cosine",
            make.weights(B),
        ],
        fake=_fake,
        differentiable=1,
        backward_schema="(Tensor grad, Tensor p, Tensor z, Tensor? boxes_p, Tensor? boxes_z, "
        "SymInt[] size, str kind, Tensor? weight, str reduction, Tensor kept) -> Tensor",
        setup_context=_setup_context,
        backward=_backward,
        fake_backward=_fake_backward,
        check_values=_check_values,
    )
)
