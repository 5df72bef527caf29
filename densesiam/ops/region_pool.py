"""Region embeddings: features summed over soft regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from densesiam import _layout, reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, select
from densesiam.ops._operations import Operation, register_operation, run_kernel


def _check(features: Tensor, logits: Tensor, normalize: bool = False) -> None:
    op = "region_pool"
    _checks.check_float(op, "features", features)
    _checks.check_float(op, "logits", logits)
    _checks.check_dims(op, "features", features, 4, "(B, C, H, W)")
    _checks.check_dims(op, "logits", logits, 4, "(B, N, H, W)")
    if features.shape[0] != logits.shape[0] or features.shape[2:] != logits.shape[2:]:
        raise ValueError(
            f"{op}: features (B, C, H, W) and logits (B, N, H, W) must agree in B, H and W, got "
            f"shapes {tuple(features.shape)} and {tuple(logits.shape)}"
        )
    if logits.shape[1] == 0:
        raise ValueError(f"{op}: logits must have N >= 1 regions, got shape {tuple(logits.shape)}")
    _checks.check_same(op, "logits", logits, "features", features)
    if not isinstance(normalize, bool):
        raise TypeError(f"{op}: normalize must be True or False, got {type(normalize).__name__}")


@_checks.checked(_check)
def region_pool(features: Tensor, logits: Tensor, normalize: bool = False) -> Tensor:
    r"""Sum of the features over each soft region, the softmax fused into the product.

    :math:`r_{bnc} = \sum_{hw} \mathrm{softmax}_n(logits)_{bnhw} f_{bchw}` (equation 4 of the
    paper). Equivalent to ``torch.einsum("bnhw,bchw->bnc", logits.softmax(1), features)``.

    Args:
        features: (B, C, H, W). Receives a gradient.
        logits: (B, N, H, W) of the features' type. Receives a gradient: the mask is attached.
        normalize: divide by each region's mass, the sum of its mask, at least 1e-6.

    Returns:
        (B, N, C) in the features' unit; float32, or float64 for float64. Half types may round the
        mask to half before the product, and accumulate in float32.

    Raises:
        TypeError: types that are not floating point, or that differ outside autocast.
        ValueError: shapes or devices that do not fit.
    """
    features, logits = _checks.promoted(features, logits)
    backend = select("region_pool", features, logits, elements=features.shape[1] * logits.shape[1])
    if backend == "reference":
        return reference.region_pool(features, logits, normalize)
    regions, mass, _ = run_kernel(
        NAMESPACES[backend], "region_pool", _layout.flat(features), _layout.flat(logits)
    )
    # B x N x C numbers: dividing here lets the kernels know of the sum alone.
    return regions / mass.clamp(min=1e-6).unsqueeze(-1) if normalize else regions


def _fake(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, pixels = features.shape
    dtype = _layout.accumulate_dtype(features)
    regions = logits.shape[1]
    return (
        features.new_empty([batch, regions, channels], dtype=dtype),
        features.new_empty([batch, regions], dtype=dtype),
        features.new_empty([batch, pixels], dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, logits = inputs
    _, _, log_sum = output
    ctx.mark_non_differentiable(log_sum)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features, logits, log_sum)


def _backward(
    ctx: Any, backward: Any, grad: Tensor | None, grad_mass: Tensor | None, _log_sum: None
) -> tuple[Tensor | None, Tensor | None]:
    need_features, need_logits = ctx.needs_input_grad
    if grad is None and grad_mass is None:
        return None, None
    features, logits, log_sum = ctx.saved_tensors
    if grad is None:
        grad = log_sum.new_zeros(features.shape[0], logits.shape[1], features.shape[1])
    grads = backward(grad, grad_mass, features, logits, log_sum, need_features, need_logits)
    return grads[0] if need_features else None, grads[1] if need_logits else None


def _fake_backward(
    grad: Tensor,
    grad_mass: Tensor | None,
    features: Tensor,
    logits: Tensor,
    log_sum: Tensor,
    need_features: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    # A gradient that nobody needs is an empty tensor.
    grad_features = _layout.empty_like(features) if need_features else features.new_empty([0])
    grad_logits = _layout.empty_like(logits) if need_logits else logits.new_empty([0])
    return grad_features, grad_logits


def _flops(features: Sequence[int], logits: Sequence[int], **_: Any) -> int:
    return 2 * math.prod(features) * logits[1]


def _backward_flops(
    grad: Sequence[int],
    grad_mass: Sequence[int] | None,
    features: Sequence[int],
    logits: Sequence[int],
    log_sum: Sequence[int],
    need_features: bool,
    need_logits: bool,
    **_: Any,
) -> int:
    return _flops(features, logits) * (need_features + need_logits)


register_operation(
    Operation(
        name="region_pool",
        schema="(Tensor features, Tensor logits) -> (Tensor, Tensor, Tensor)",
        usage="region_pool(features, logits)",
        summary="features summed over soft regions",
        equivalent=('torch.einsum("bnhw,bchw->bnc", logits.softmax(1), features)',),
        example=lambda make, B, C, H, W: [
            make.features(B, C, H, W),
            make.features(B, 4, H, W),
            True,
        ],
        fake=_fake,
        differentiable=2,
        backward_schema="(Tensor grad, Tensor? grad_mass, Tensor features, Tensor logits, "
        "Tensor log_sum, bool need_features, bool need_logits) -> (Tensor, Tensor)",
        setup_context=_setup_context,
        backward=_backward,
        fake_backward=_fake_backward,
        flops={"region_pool": _flops, "region_pool_backward": _backward_flops},
    )
)
