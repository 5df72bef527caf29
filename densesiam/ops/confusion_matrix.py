"""How often each true class was given each label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densesiam import reference
from densesiam.ops import _checks
from densesiam.ops._backends import NAMESPACES, select
from densesiam.ops._operations import Operation, register_operation, run_kernel
from densesiam.reference._numerics import values_are_known

INTEGER_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _check(
    prediction: Tensor, label: Tensor, num_predictions: int, num_classes: int, ignore_index: int
) -> None:
    op = "confusion_matrix"
    for name, tensor in (("prediction", prediction), ("label", label)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in INTEGER_TYPES:
            raise TypeError(f"{op}: {name} must hold integers, got {tensor.dtype}")
        _checks.check_strided(op, name, tensor)
    if prediction.shape != label.shape:
        raise ValueError(
            f"{op}: prediction and label must have one shape, got {tuple(prediction.shape)} and "
            f"{tuple(label.shape)}"
        )
    _checks.check_device(op, "label", label, "prediction", prediction)
    for name, number in (
        ("num_predictions", num_predictions),
        ("num_classes", num_classes),
        ("ignore_index", ignore_index),
    ):
        if isinstance(number, bool) or not isinstance(number, _checks.INTEGERS):
            raise TypeError(f"{op}: {name} must be an int, got {type(number).__name__}")
        if number < 1 and name != "ignore_index":
            raise ValueError(f"{op}: {name} must be at least 1, got {number}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"{op}: ignore_index must fit in 64 bits, got {ignore_index}")
    if num_predictions * num_classes >= 2**31:
        raise ValueError(
            f"{op}: num_predictions x num_classes must be less than 2^31, got {num_predictions} x "
            f"{num_classes}"
        )


@_checks.checked(_check)
def confusion_matrix(
    prediction: Tensor, label: Tensor, num_predictions: int, num_classes: int, ignore_index: int
) -> Tensor:
    """Pixel counts of every pair of true class and predicted label.

    Equivalent to ``torch.bincount(num_predictions * label + prediction)`` over the pixels whose
    label is not ``ignore_index``, as a matrix. Counts are exact integers.

    Args:
        prediction: integers in [0, num_predictions), such as clusters; any shape.
        label: integers in [0, num_classes), or ignore_index, of the same shape.
        num_predictions: number of columns.
        num_classes: number of rows.
        ignore_index: the label of pixels without a true class, dropped whatever their prediction.

    Returns:
        (num_classes, num_predictions) int64: rows are true classes.

    Raises:
        TypeError: tensors that do not hold integers.
        ValueError: shapes, devices or numbers that do not fit; on the CPU, a label or a prediction
            out of its range (on a GPU such pixels are dropped, since raising would wait for it).
    """
    numbers = (num_predictions, num_classes, ignore_index)
    backend = select("confusion_matrix", prediction)
    if backend == "reference":
        return reference.confusion_matrix(prediction, label, *numbers)
    matrix = run_kernel(NAMESPACES[backend], "confusion_matrix", prediction, label, *numbers)
    if backend != "cpu" or prediction.device.type not in _checks._CHECKED:
        return matrix
    if not values_are_known(prediction):
        return torch.ops.densesiam.valid_counts(matrix, prediction, label, *numbers)
    _require_valid(matrix, prediction, label, *numbers)
    return matrix


def _require_valid(matrix: Tensor, prediction: Tensor, label: Tensor, *numbers: int) -> None:
    # Where a value is out of range the CPU's kernel gives counts of -1 all over; the reference
    # finds the culprits and raises.
    if matrix[0, 0].item() < 0:
        reference.confusion_matrix(prediction, label, *numbers)


# Raising is not for a traced function: in a compiled graph the check is an operator of its own.
torch.library.define(
    "densesiam::valid_counts",
    "(Tensor matrix, Tensor prediction, Tensor label, SymInt num_predictions, SymInt num_classes, "
    "SymInt ignore_index) -> Tensor",
)


@torch.library.impl("densesiam::valid_counts", "CompositeExplicitAutograd")
def _valid_counts(matrix: Tensor, *args: Any) -> Tensor:
    _require_valid(matrix, *args)
    return matrix.clone()


@torch.library.register_fake("densesiam::valid_counts")
def _valid_counts_fake(matrix: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(matrix)


def _fake(
    prediction: Tensor, label: Tensor, num_predictions: int, num_classes: int, ignore_index: int
) -> Tensor:
    return prediction.new_empty([num_classes, num_predictions], dtype=torch.int64)


register_operation(
    Operation(
        name="confusion_matrix",
        schema="(Tensor prediction, Tensor label, SymInt num_predictions, SymInt num_classes, "
        "SymInt ignore_index) -> Tensor",
        usage="confusion_matrix(prediction, label, ...)",
        summary="exact pixel counts",
        equivalent=("torch.bincount(n * label + prediction)",),
        example=lambda make, B, C, H, W: [
            make.integers(C, B, H, W),
            make.integers(C, B, H, W),
            C,
            C,
            0,
        ],
        fake=_fake,
        integers=True,
        triton=False,
    )
)
