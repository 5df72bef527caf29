"""Squared distance of p and z, both normalised over channels: `pixel_loss` with that loss."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .losses import PixelLoss, add_products, combination, start_products
from .pixel_loss import pixel_loss, pixel_loss_backward


@triton.jit
def _finish(sums):
    # Statistics a = 2 / (|p| |z|) and b = 2 cos / |p|^2, or 2 / |p|^2 below the clamp.
    pp, zz, pz = sums
    p_inverse = tl.rsqrt(tl.maximum(pp, 1e-16))
    z_inverse = tl.rsqrt(tl.maximum(zz, 1e-16))
    cosine = pz * p_inverse * z_inverse
    loss = pp * p_inverse * p_inverse + zz * z_inverse * z_inverse - 2 * cosine
    b = tl.where(pp < 1e-16, 2, 2 * cosine) * p_inverse * p_inverse
    return loss, 2 * p_inverse * z_inverse, b


_L2 = PixelLoss(start_products, add_products, _finish, combination)


def pixel_l2(p: Tensor, z: Tensor, weight: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
    """Loss and statistics, of the dispatcher's schema."""
    return pixel_loss(_L2, p, z, weight, reduction)


def pixel_l2_backward(
    grad: Tensor, p: Tensor, z: Tensor, weight: Tensor | None, reduction: str, statistics: Tensor
) -> Tensor:
    """Gradient to p, in p's layout."""
    return pixel_loss_backward(_L2, grad, p, z, weight, reduction, statistics)
