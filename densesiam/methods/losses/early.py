"""Losses whose gradients are taken at once, so that less is kept until backward."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def early_gradients(
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    modules: Sequence[nn.Module],
    scale: Tensor | None = None,
) -> Tensor:
    r"""Compute a loss together with its gradients, and forget at once what those needed.

    A sum of losses keeps the maps of every layer of all its terms until backward. A term computed
    here keeps :math:`\partial L / \partial x` alone, for each input and parameter x; backward
    multiplies it by what arrives there. Values and gradients are those of ``loss(*inputs)`` and
    cost as much to compute, but the peak of memory is the largest term's, not the sum of all.
    Terms may be nested.

    Only inputs and modules get gradients: whatever else the loss uses counts as a constant, and no
    error says so. Hooks on tensors inside see the gradient before it is multiplied. ``torch.func``
    and ``torch.compile(fullgraph=True)`` cannot look inside.

    Args:
        loss: takes the inputs, returns a scalar.
        inputs: tensors that the loss depends on; those that require a gradient get theirs.
        modules: modules whose parameters the loss uses.
        scale: scalar by which the loss is multiplied while its gradients are taken, and divided by
            in backward, so that float16 does not round them to 0: see `gradient_scale`. None is 1.

    Returns:
        The loss, a scalar. It can be run backward through once, and not be differentiated twice;
        where nothing requires a gradient, or under `torch.no_grad`, it is just the loss.
    """
    # Each once: modules may share them.
    parameters = dict.fromkeys(chain.from_iterable(module.parameters() for module in modules))
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (*inputs, *parameters)):
        return loss(*inputs)
    return _EarlyGradients.apply(loss, scale, len(inputs), *inputs, *parameters)


def gradient_scale(module: L.LightningModule) -> Tensor | None:
    """What the loss will be multiplied by before backward, by float16's gradient scaler.

    Args:
        module: one that may be in training by a `lightning.Trainer`.

    Returns:
        A scalar on the module's device; None where nothing scales.
    """
    if module._trainer is None:  # what is public raises an error where there is none
        return None
    scaler = getattr(module.trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler.scale(torch.ones((), device=module.device))


class _EarlyGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[..., Tensor],
        scale: Tensor | None,
        inputs: int,
        *tensors: Tensor,
    ) -> Tensor:
        leaves = [t.detach().requires_grad_(t.requires_grad) for t in tensors[:inputs]]
        learning = [*leaves, *tensors[inputs:]]
        with torch.enable_grad():
            value = loss(*leaves)
            scaled = value if scale is None else value * scale
        # Each layer's backward runs in the type of its forward, as it would later.
        with torch.autocast(value.device.type, enabled=False):
            gradients = iter(
                torch.autograd.grad(
                    scaled, [t for t in learning if t.requires_grad], allow_unused=True
                )
            )
        ctx.gradients = [next(gradients) if t.requires_grad else None for t in learning]
        ctx.scale = scale
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward ran a second time through a loss of early_gradients, whose gradients are "
                "gone after the first: compute the loss again"
            )
        factor = received if ctx.scale is None else received / ctx.scale
        gradients, ctx.gradients = ctx.gradients, None
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                # Not in place: autograd may have given one tensor to several of them.
                gradients[i] = gradient * factor
        return None, None, None, *gradients
