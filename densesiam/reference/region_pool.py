"""Region embeddings: features summed over soft regions."""

from contextlib import nullcontext

import torch
from torch import Tensor

from densesiam.reference._numerics import compute_dtype


def region_pool(features: Tensor, logits: Tensor, normalize: bool = False) -> Tensor:
    r"""Sum of the features over each soft region.

    :math:`r_{bnc} = \sum_{hw} m_{bnhw} f_{bchw}` with :math:`m = \mathrm{softmax}_n(logits)`, the
    soft assignment of every pixel to N regions.

    Args:
        features: (B, C, H, W).
        logits: (B, N, H, W). The mask is not detached: both arguments receive gradients.
        normalize: Divide by the region's mass, :math:`\max(\sum_{hw} m_{bnhw}, 10^{-6})`: an
            average in place of a sum.

    Returns:
        (B, N, C), in the features' unit; float32, or float64 for float64.
    """
    dtype = compute_dtype(features)
    # Autocast would take the matrix product to a half type. It knows no meta tensors.
    device = features.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        mask = logits.to(dtype).softmax(dim=1)
        regions = torch.einsum("bnhw,bchw->bnc", mask, features.to(dtype))
        if normalize:
            regions = regions / mask.sum(dim=(2, 3)).clamp(min=1e-6).unsqueeze(-1)
        return regions
