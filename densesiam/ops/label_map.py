"""From coarse logits to a label at every pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from densesiam import reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, select
from densesiam.ops._operations import Operation, register_operation, run_kernel


def _check(logits: Tensor, size: int | tuple[int, int]) -> None:
    op = "label_map"
    _checks.check_float(op, "logits", logits)
    _checks.check_dims(op, "logits", logits, 4, "(B, K, h, w)")
    if 0 in logits.shape[1:]:
        raise ValueError(f"{op}: logits have no values, got shape {tuple(logits.shape)}")
    _checks.check_size(op, size)


@_checks.checked(_check)
def label_map(logits: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Class of greatest logit at every pixel, the logits resized bilinearly on the way.

    Equivalent to ``F.interpolate(logits.float(), size, mode="bilinear").argmax(1)``, without ever
    holding the resized logits; ties go to the lowest index. Not differentiable.

    Args:
        logits: (B, K, h, w); half types are interpolated in float32.
        size: (H, W) of the result in pixels, or one number for both; larger or smaller than (h, w).

    Returns:
        (B, H, W) int64.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: a shape or size that does not fit.
    """
    pair = _checks.size_pair(size)
    backend = select("label_map", logits, elements=pair[0] * pair[1])
    if backend == "reference":
        return reference.label_map(logits, (pair[0], pair[1]))
    return run_kernel(NAMESPACES[backend], "label_map", logits.detach(), pair)


def _fake(logits: Tensor, size: list[int]) -> Tensor:
    return logits.new_empty([logits.shape[0], *size], dtype=torch.int64)


register_operation(
    Operation(
        name="label_map",
        schema="(Tensor logits, SymInt[] size) -> Tensor",
        usage="label_map(logits, size)",
        summary="labels at full size",
        equivalent=('F.interpolate(logits, size, mode="bilinear").argmax(1)',),
        example=lambda make, B, C, H, W: [make.features(B, C, H, W), (H + 2, W - 1)],
        fake=_fake,
    )
)
