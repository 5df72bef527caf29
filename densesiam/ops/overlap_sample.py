"""Bilinear samples of a box: GridSample, and crop-flip-resize of a whole feature map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from densesiam import _layout, reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, select
from densesiam.ops._operations import Operation, register_operation, run_kernel


def _check(features: Tensor, boxes: Tensor, size: int | tuple[int, int]) -> None:
    op = "overlap_sample"
    _checks.check_float(op, "features", features)
    _checks.check_dims(op, "features", features, 4, "(B, C, H, W)")
    if features.shape[2] == 0 or features.shape[3] == 0:
        raise ValueError(f"{op}: features have no pixels, got shape {tuple(features.shape)}")
    _checks.check_boxes(op, "boxes", boxes, "features", features)
    _checks.check_size(op, size)


@_checks.checked(_check)
def overlap_sample(features: Tensor, boxes: Tensor, size: int | tuple[int, int]) -> Tensor:
    r"""Bilinear samples at the centres of a grid of cells laid over each box.

    Column j of Kw lies at :math:`u_j = x_1 + \frac{j + 1/2}{K_w} (x_2 - x_1)` of the map's width,
    pixel coordinate :math:`u_j W - 1/2` clamped to [0, W - 1]; rows likewise. A box with x1 > x2 is
    read from right to left: cropping, flipping and resizing are one operation.

    Equivalent to ``F.grid_sample(features, grid, padding_mode="border", align_corners=False)`` with
    ``grid`` the cell centres above as ``2 u - 1``.

    Args:
        features: (B, C, H, W) float64, float32, float16 or bfloat16, contiguous or channels last.
            The only argument to receive a gradient.
        boxes: (B, 4), x1, y1, x2, y2 in fractions of the map; float32 or float64, never cast down.
            They may be mirrored, of zero size, or outside [0, 1].
        size: K, or (Kh, Kw): cells a box.

    Returns:
        (B, C, Kh, Kw) in the features' type and layout.

    Raises:
        TypeError: features or boxes of another type.
        ValueError: a shape, size or device that does not fit; on the CPU (elsewhere under
            ``DENSESIAM_CHECK=1``) a box that is not finite. Unchecked, it gives NaN samples and
            zero gradient.
    """
    pair = _checks.size_pair(size)
    backend = select("overlap_sample", features, elements=features.shape[1] * pair[0] * pair[1])
    boxes = _checks.finite_boxes("overlap_sample", "boxes", boxes, backend)
    if backend == "reference":
        return reference.overlap_sample(features, boxes, (pair[0], pair[1]))
    return run_kernel(NAMESPACES[backend], "overlap_sample", features, boxes, pair)


def _check_values(features: Tensor, boxes: Tensor, size: list[int]) -> None:
    _checks.require_finite("overlap_sample", "boxes", boxes)


def _fake(features: Tensor, boxes: Tensor, size: list[int]) -> Tensor:
    shape = [features.shape[0], features.shape[1], *size]
    return _layout.empty(features, shape, _layout.is_channels_last(features), features.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, _ = inputs
    ctx.save_for_backward(boxes)
    ctx.size = list(features.shape[2:])
    ctx.channels_last = _layout.is_channels_last(features)


def _backward(ctx: Any, backward: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
    if not ctx.needs_input_grad[0]:
        return None, None, None
    (boxes,) = ctx.saved_tensors
    return backward(grad, boxes, ctx.size, ctx.channels_last), None, None


def _fake_backward(grad: Tensor, boxes: Tensor, size: list[int], channels_last: bool) -> Tensor:
    return _layout.empty(grad, [grad.shape[0], grad.shape[1], *size], channels_last, grad.dtype)


register_operation(
    Operation(
        name="overlap_sample",
        schema="(Tensor features, Tensor boxes, SymInt[] size) -> Tensor",
        usage="overlap_sample(features, boxes, size)",
        summary="bilinear samples of a box: crop, flip, resize",
        equivalent=('F.grid_sample(features, grid, padding_mode="border", align_corners=False)',),
        example=lambda make, B, C, H, W: [make.features(B, C, H, W), make.boxes(B), (H - 1, W + 2)],
        fake=_fake,
        differentiable=1,
        backward_schema="(Tensor grad, Tensor boxes, SymInt[] size, bool channels_last) -> Tensor",
        setup_context=_setup_context,
        backward=_backward,
        fake_backward=_fake_backward,
        keeps_type=True,
        check_values=_check_values,
    )
)
