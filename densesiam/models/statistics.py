"""Batch normalisation needs something to average over."""

from torch import Size, nn


def check_batch_statistics(module: nn.Module, values: int, shape: Size) -> None:
    """Refuse to normalise a single value by itself, which would give 0 whatever it is.

    Layers in evaluation mode are fine. So are synchronised ones, which average over other devices
    too and check for themselves.

    Args:
        module: about to be applied.
        values: how many values of each channel its batch normalisation will see, at the least.
        shape: of the input, for the message.

    Raises:
        ValueError: there is one value, and a layer in training to normalise it.
    """
    if values > 1 or not any(
        layer.training and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        for layer in module.modules()
    ):
        return
    raise ValueError(
        f"{type(module).__name__}: batch normalisation needs more than one value per channel in "
        f"training, got a single one from an input of shape {tuple(shape)}. Use a batch of two or "
        "more images, larger views, or synchronised batch normalisation over several devices; or "
        "call .eval() if this is not training."
    )
