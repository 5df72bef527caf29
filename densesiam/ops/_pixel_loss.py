"""What every loss between the channels of p and z shares: checks, dispatch, fakes and autograd.

Such a loss keeps two numbers per pixel for its backward, the statistics (B, 2, P). Its function
takes (p, z, weight, reduction), or (p, z, kind, weight, reduction) where it is several losses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from densesiam import _layout, reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, select
from densesiam.ops._operations import Operation, run_kernel

REDUCTIONS = ("mean", "none")


def check(
    op: str, p: Tensor, z: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> None:
    """Require what every pixel loss does of its arguments."""
    _checks.check_float(op, "p", p)
    _checks.check_float(op, "z", z)
    if p.dim() < 2 or p.shape[1] == 0:
        raise ValueError(f"{op}: p must be (B, C, *) with C >= 1, got shape {tuple(p.shape)}")
    if p.shape != z.shape:
        raise ValueError(
            f"{op}: p and z must have one shape, got {tuple(p.shape)} and {tuple(z.shape)}"
        )
    _checks.check_same(op, "z", z, "p", p)
    _checks.check_weight(op, weight, "p", p)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)


def run(op: str, p: Tensor, z: Tensor, *kind: str, weight: Tensor | None, reduction: str) -> Tensor:
    """The loss, (B, *) or its mean, of checked arguments, on the backend that serves the call."""
    p, z = _checks.promoted(p, z.detach())
    backend = select(op, p)
    if backend == "reference":
        return getattr(reference, op)(p, z, *kind, weight, reduction)
    weight = None if weight is None else weight.detach()
    flat = _layout.flat(p), _layout.flat(z)
    loss, _ = run_kernel(NAMESPACES[backend], op, *flat, *kind, weight, reduction)
    return loss if reduction == "mean" else loss.view(p.shape[0], *p.shape[2:])


def operation(
    name: str, usage: str, summary: str, equivalent: tuple[str, ...], kind: str | None = None
) -> Operation:
    """The record of a pixel loss; ``kind`` is the one of its exemplary call, if it has kinds."""
    kinds = [] if kind is None else [kind]
    argument = "str kind, " * len(kinds)
    return Operation(
        name=name,
        schema=f"(Tensor p, Tensor z, {argument}Tensor? weight, str reduction) -> (Tensor, Tensor)",
        usage=usage,
        summary=summary,
        equivalent=equivalent,
        example=lambda make, B, C, H, W: [
            *(make.features(B, C, H, W) for _ in ("p", "z")),
            *kinds,
            make.weights(B),
        ],
        fake=_fake,
        differentiable=1,
        backward_schema=(
            f"(Tensor grad, Tensor p, Tensor z, {argument}Tensor? weight, str reduction, "
            "Tensor statistics) -> Tensor"
        ),
        setup_context=_setup_context,
        backward=_backward,
        fake_backward=_fake_backward,
        pixel_loss=True,
    )


def _fake(p: Tensor, z: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    batch, _, pixels = p.shape
    dtype = _layout.accumulate_dtype(p)
    mean = settings[-1] == "mean"
    loss = p.new_empty([] if mean else [batch, pixels], dtype=dtype)
    return loss, p.new_empty([batch, 2, pixels], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    p, z, *kind, weight, reduction = inputs
    _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(p, z, weight, statistics)
    ctx.kind, ctx.reduction = kind, reduction


def _backward(
    ctx: Any, backward: Any, grad: Tensor | None, _statistics: None
) -> tuple[Tensor | None, ...]:
    no_more = [None] * (len(ctx.kind) + 3)
    if grad is None or not ctx.needs_input_grad[0]:
        return None, *no_more
    p, z, weight, statistics = ctx.saved_tensors
    return backward(grad, p, z, *ctx.kind, weight, ctx.reduction, statistics), *no_more


def _fake_backward(grad: Tensor, p: Tensor, *_: Any) -> Tensor:
    return _layout.empty_like(p)
