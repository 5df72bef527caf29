"""What the reference tests share: seeded tensors, every kind of box, and hypothesis settings."""

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

# Derandomised: the same examples in every run. No deadline, and nothing is too slow: the first
# call of an op is slow, and so is a busy machine.
properties = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

seeds = st.integers(0, 2**32 - 1)

_BOX_KINDS = {
    # Each gives the two ends of a box along one axis from two uniform numbers in [0, 1).
    "inside": lambda a, b: (torch.minimum(a, b), torch.maximum(a, b)),
    "mirrored": lambda a, b: (torch.maximum(a, b), torch.minimum(a, b)),
    "anywhere": lambda a, b: (2 * a - 0.5, 2 * b - 0.5),
    "zero size": lambda a, b: (a, a),
    "outside": lambda a, b: (a + 1.25, b + 2),
    "whole": lambda a, b: (0 * a, 0 * b + 1),
    "whole, mirrored": lambda a, b: (0 * a + 1, 0 * b),
    # Eighths of a map of 4, 8 or 16 pixels: coordinates that fall on whole numbers.
    "on the grid": lambda a, b: ((8 * a).round() / 8, (8 * b).round() / 8),
}
box_kinds = st.sampled_from(sorted(_BOX_KINDS))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_boxes(kind_x: str, kind_y: str, B: int, seed: int = 0) -> Tensor:
    a, b, c, d = torch.rand(
        4, B, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    (x1, x2), (y1, y2) = _BOX_KINDS[kind_x](a, b), _BOX_KINDS[kind_y](c, d)
    return torch.stack([x1, y1, x2, y2], dim=1)


def library_sample(features, boxes, size):
    """The same by grid_sample, whose grid runs from -1 to 1 between the map's outer edges."""
    Kh, Kw = size

    def centres(start, end, K):
        cell = (torch.arange(K, dtype=boxes.dtype) + 0.5) / K
        return 2 * (start[:, None] + cell * (end - start)[:, None]) - 1

    x, y = centres(boxes[:, 0], boxes[:, 2], Kw), centres(boxes[:, 1], boxes[:, 3], Kh)
    grid = torch.stack([x[:, None, :].expand(-1, Kh, -1), y[:, :, None].expand(-1, -1, Kw)], dim=-1)
    return F.grid_sample(
        features, grid.to(features.dtype), padding_mode="border", align_corners=False
    )


# Four steps to each of a sample's two coordinates. The interpolation rounds much less than they.
STEPS = 8


def reach(boxes, shape):
    """Size of the steps: coordinates in pixels, times the difference of two normal numbers."""
    return 2**0.5 * float(boxes.abs().max().clamp(min=1)) * max(shape[2:])
