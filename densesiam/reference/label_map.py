"""From coarse logits to a label at every pixel."""

from torch import Tensor

from densesiam.reference._numerics import compute_dtype, first_argmax
from densesiam.reference.overlap_sample import overlap_sample, whole_map_boxes


def label_map(logits: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Class of greatest logit at every pixel, after bilinear resizing of the logits.

    Resizing is that of ``F.interpolate(mode="bilinear", align_corners=False)``, up or down and
    without antialiasing: samples at the cell centres of the whole map.

    Args:
        logits: (B, K, h, w); half types are interpolated in float32.
        size: H and W of the result in pixels, or one number for both.

    Returns:
        (B, H, W) int64; the lowest index on a tie, and the first NaN if there is one.
    """
    logits = logits.detach().to(compute_dtype(logits))
    return first_argmax(overlap_sample(logits, whole_map_boxes(logits), size))
