"""Means of bilinear samples over the cells of boxes: torchvision's RoIAlign, deterministic."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densesiam import _layout, reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, runs_cpu_kernels, select
from densesiam.ops._operations import Make, Operation, register_operation, run_kernel
from densesiam.reference._numerics import values_are_known
from densesiam.reference.roi_align import rows_of_boxes

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


def _check(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> None:
    op = "roi_align"
    _checks.check_float(op, "features", features)
    _checks.check_dims(op, "features", features, 4, "(B, C, H, W)")
    if features.shape[2] == 0 or features.shape[3] == 0:
        raise ValueError(f"{op}: features have no pixels, got shape {tuple(features.shape)}")
    if isinstance(boxes, Tensor):
        _check_boxes("boxes", boxes, features, 5, "(R, 5): image, x1, y1, x2, y2")
    elif not isinstance(boxes, list | tuple):
        raise TypeError(
            f"{op}: boxes must be a tensor (R, 5) or a list of tensors (L, 4), got "
            f"{type(boxes).__name__}"
        )
    else:
        if not 0 < len(boxes) <= features.shape[0]:
            raise ValueError(
                f"{op}: a list of boxes must have one tensor for each of {features.shape[0]} "
                f"images, got {len(boxes)}"
            )
        for i, each in enumerate(boxes):
            _check_boxes(f"boxes[{i}]", each, features, 4, "(L, 4): x1, y1, x2, y2")
            if each.dtype != boxes[0].dtype:
                raise TypeError(
                    f"{op}: all boxes must have one type, got {boxes[0].dtype} and {each.dtype}"
                )
    _checks.check_size(op, size)
    if not isinstance(spatial_scale, _NUMBERS):
        raise TypeError(f"{op}: spatial_scale must be a number, got {spatial_scale!r}")
    if isinstance(spatial_scale, int | float) and not abs(spatial_scale) <= sys.float_info.max:
        raise ValueError(f"{op}: spatial_scale must be finite, got {spatial_scale}")
    if isinstance(sampling_ratio, bool) or not isinstance(sampling_ratio, _checks.INTEGERS):
        raise TypeError(f"{op}: sampling_ratio must be an int, got {sampling_ratio!r}")
    if sampling_ratio * max(_checks.size_pair(size)) > _checks.MOST:  # points along an axis
        raise ValueError(
            f"{op}: sampling_ratio times size must be at most {_checks.MOST}, got {sampling_ratio} "
            f"for size {size}"
        )
    if sampling_ratio < -_checks.MOST:  # it only has to be negative, and 64 bits may not hold it
        raise ValueError(
            f"{op}: sampling_ratio must be at least {-_checks.MOST}, got {sampling_ratio}"
        )
    if not isinstance(aligned, bool):
        raise TypeError(f"{op}: aligned must be True or False, got {aligned!r}")


def _check_boxes(name: str, boxes: Tensor, features: Tensor, columns: int, shape: str) -> None:
    _checks.check_float("roi_align", name, boxes)
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        raise ValueError(f"roi_align: {name} must be {shape}, got shape {tuple(boxes.shape)}")
    _checks.check_device("roi_align", name, boxes, "features", features)
    _checks.check_constant("roi_align", name, boxes)


@_checks.checked(_check)
def roi_align(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    r"""Mean of n x n bilinear samples in each cell of each box.

    ``torchvision.ops.roi_align``, called in the same way, with the same results; and a backward
    that gives the same bits every time, in no more memory than its result and an integer a box.

    A box edge x lies at pixel coordinate :math:`x s - o` (s: ``spatial_scale``; o: 1/2 where
    ``aligned``, else 0). Cell j of Kw is w = (x2 - x1) / Kw wide, and point i of its n lies at
    :math:`x_1 + j w + (i + 1/2) w / n`; rows likewise. A point outside [-1, W] counts as 0; the
    others are clamped to [0, W - 1].

    Args:
        features: (B, C, H, W) float64, float32, float16 or bfloat16, contiguous or channels last.
            The only argument to receive a gradient.
        boxes: (R, 5), image and x1, y1, x2, y2; or a list with the boxes (L, 4) of each image. Any
            of these types, whatever that of the features; never cast down.
        size: K, or (Kh, Kw): cells a box.
        spatial_scale: pixels of the map for one unit of the boxes.
        sampling_ratio: n. Where it is not positive, n is ceil(w), and ceil(h) for rows: a cell
            without width or height, or mirrored, then has no points and is 0.
        aligned: shift boxes by half a pixel, so that pixel centres lie at half-integers. Where not,
            boxes are at least a pixel wide and high.

    Returns:
        (R, C, Kh, Kw) in the features' type and layout.

    Raises:
        TypeError: features, boxes or numbers of another type.
        ValueError: a shape, size or device that does not fit; on the CPU (elsewhere under
            ``DENSESIAM_CHECK=1``) a box that is not finite, or of an image that there is not.
            Unchecked, it gives NaN and zero gradient.
    """
    pair = _checks.size_pair(size)
    rows = rows_of_boxes(boxes)
    backend = select("roi_align", features, rows, elements=features.shape[1] * pair[0] * pair[1])
    rows = _checked_values(rows, features.shape[0], backend)
    scale = float(spatial_scale)
    if backend == "reference":
        return reference.roi_align(
            features, rows, (pair[0], pair[1]), scale, sampling_ratio, aligned
        )
    return run_kernel(
        NAMESPACES[backend], "roi_align", features, rows, pair, scale, sampling_ratio, aligned
    )


def _checked_values(boxes: Tensor, images: int, backend: str) -> Tensor:
    """The boxes, their values checked as `densesiam.ops._checks.finite_boxes` does."""
    known = values_are_known(boxes)
    if (known and runs_cpu_kernels(backend)) or boxes.device.type not in _checks._CHECKED:
        return boxes
    if not known:
        return torch.ops.densesiam.roi_boxes(boxes.detach(), images)
    _require_values(boxes, images)
    return boxes


def _check_values(features: Tensor, boxes: Tensor, *_: Any) -> None:
    _require_values(boxes, features.shape[0])


def _require_values(boxes: Tensor, images: int) -> None:
    if boxes.shape[0] == 0:
        return
    least, most = (each.tolist() for each in torch.aminmax(boxes, dim=0))
    # A NaN in a column is its least and its most.
    if all(map(math.isfinite, least + most)) and least[0] > -1 and most[0] < images:
        return
    finite = boxes.isfinite().all(dim=1)
    inside = (boxes[:, 0] > -1) & (boxes[:, 0] < images)  # fractions are cut off
    bad = int((~(finite & inside)).nonzero()[0])
    if not finite[bad]:
        given = boxes[bad].tolist()
        raise ValueError(f"roi_align: boxes must be finite, got {given} for box {bad}")
    raise ValueError(
        f"roi_align: the first column of boxes must be an image from 0 to {images - 1}, got "
        f"{boxes[bad, 0].item():g} for box {bad}"
    )


torch.library.define("densesiam::roi_boxes", "(Tensor boxes, SymInt images) -> Tensor")


@torch.library.impl("densesiam::roi_boxes", "CompositeExplicitAutograd")
def _roi_boxes(boxes: Tensor, images: int) -> Tensor:
    _require_values(boxes, images)
    return boxes.clone()


@torch.library.register_fake("densesiam::roi_boxes")
def _roi_boxes_fake(boxes: Tensor, images: int) -> Tensor:
    return torch.empty_like(boxes)


def _fake(
    features: Tensor,
    boxes: Tensor,
    size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    shape = [boxes.shape[0], features.shape[1], *size]
    return _layout.empty(features, shape, _layout.is_channels_last(features), features.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, _, *ctx.how = inputs
    ctx.save_for_backward(boxes)
    B, _, H, W = features.shape
    ctx.maps = [B, H, W]
    ctx.channels_last = _layout.is_channels_last(features)


def _backward(ctx: Any, backward: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradient = None
    if ctx.needs_input_grad[0]:
        (boxes,) = ctx.saved_tensors
        gradient = backward(grad, boxes, *ctx.how, ctx.maps, ctx.channels_last)
    return gradient, None, None, None, None, None


def _fake_backward(
    grad: Tensor,
    boxes: Tensor,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    maps: list[int],
    channels_last: bool,
) -> Tensor:
    B, H, W = maps
    return _layout.empty(grad, [B, grad.shape[1], H, W], channels_last, grad.dtype)


def _example(make: Make, B: int, C: int, H: int, W: int) -> list[Any]:
    features, boxes = make.features(B, C, H, W), make.boxes(B)
    image = torch.arange(B, dtype=boxes.dtype, device=boxes.device)[:, None]
    return [features, torch.cat([image, boxes], dim=1), (3, 2), float(W)]


register_operation(
    Operation(
        name="roi_align",
        schema="(Tensor features, Tensor boxes, SymInt[] size, float spatial_scale, "
        "SymInt sampling_ratio, bool aligned) -> Tensor",
        usage="roi_align(features, boxes, size, ...)",
        summary="mean samples in the cells of boxes, for detection",
        equivalent=("torchvision.ops.roi_align(features, boxes, size, ...)",),
        example=_example,
        fake=_fake,
        differentiable=1,
        backward_schema="(Tensor grad, Tensor boxes, float spatial_scale, SymInt sampling_ratio, "
        "bool aligned, SymInt[] maps, bool channels_last) -> Tensor",
        setup_context=_setup_context,
        backward=_backward,
        fake_backward=_fake_backward,
        keeps_type=True,
        check_values=_check_values,
        triton=False,
    )
)
