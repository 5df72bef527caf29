"""How often each class was given each label."""

import torch
from torch import Tensor

from densesiam.reference._numerics import count, values_are_known


def confusion_matrix(
    prediction: Tensor,
    label: Tensor,
    num_predictions: int,
    num_classes: int,
    ignore_index: int,
) -> Tensor:
    """Pixel counts of every pair of true class and predicted label.

    Pixels with ``label == ignore_index`` are dropped, whatever their prediction.

    Args:
        prediction: Integers in [0, num_predictions), such as clusters; any shape.
        label: Integers in [0, num_classes), or ignore_index, of the same shape.
        num_predictions: Number of columns.
        num_classes: Number of rows.
        ignore_index: The label of pixels that have no true class.

    Returns:
        (num_classes, num_predictions) int64: rows are true classes, columns are predictions.

    Raises:
        ValueError: On the CPU, a label or a prediction out of its range. On a GPU, where raising
            would wait for the device, such pixels are dropped.
        RuntimeError: The same, on the CPU under ``torch.compile``.
    """
    prediction, label = prediction.long(), label.long()
    labelled = label != ignore_index
    label_fits = (label >= 0) & (label < num_classes)
    prediction_fits = (prediction >= 0) & (prediction < num_predictions)
    if label.device.type == "cpu":
        _require(label_fits | ~labelled, "label", label, num_classes)
        _require(prediction_fits | ~labelled, "prediction", prediction, num_predictions)

    # Dropped pixels go to one cell more, behind the last.
    cells = num_classes * num_predictions
    counted = labelled & label_fits & prediction_fits
    cell = torch.where(counted, label * num_predictions + prediction, cells)
    return count(cell, cells + 1)[:cells].view(num_classes, num_predictions)


def _require(fits: Tensor, name: str, values: Tensor, limit: int) -> None:
    expected = f"confusion_matrix: every {name} must be in [0, {limit})"
    if not values_are_known(values):  # one can assert them then, but not branch on them
        torch._assert_async(fits.all(), expected)
    elif not fits.all():
        raise ValueError(f"{expected}, got {values[~fits].unique().tolist()[:8]}")
