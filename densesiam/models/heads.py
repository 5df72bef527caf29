"""Projectors and predictors: small perceptrons on pixels or on vectors."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densesiam.models.statistics import check_batch_statistics


class _Head(nn.Sequential):
    """Layers that end in a clear error where batch normalisation has nothing to average."""

    @property
    def max_rank(self) -> int:
        """The most dimensions that the output can fill: the channels of the narrowest layer."""
        layers = [layer for layer in self if isinstance(layer, nn.Linear | nn.Conv2d)]
        return min(channels for layer in layers for channels in layer.weight.shape[:2])

    def forward(self, input: Tensor, *, views: int = 1) -> Tensor:
        """Apply the layers.

        Args:
            input: (B, C, H, W) for a dense head, (N, C) for one on vectors.
            views: how many equal parts the batch is put together from. Each is normalised by its
                own statistics, as if the head were applied to one after the other; but the weights,
                and their gradients, are read and written once. It pays where those are larger than
                the input.

        Returns:
            The same shape with the output's channels.

        Raises:
            ValueError: the parts are unequal; or, in training, every channel holds a single value.
        """
        if input.shape[0] % views:
            raise ValueError(f"a batch of {input.shape[0]} does not consist of {views} equal views")
        check_batch_statistics(self, input.numel() // input.shape[1] // views, input.shape)
        for layer in self:
            if views > 1 and isinstance(layer, _BatchNorm):
                input = torch.cat([layer(view) for view in input.chunk(views)])
            else:
                input = layer(input)
        return input


class Projector(_Head):
    """g: two hidden layers with batch normalisation and ReLU, then a normalised output.

    The last normalisation has no scale and no shift: it keeps every output channel at mean 0 and
    variance 1 over the batch, so no channel (in segmentation: no category) can take all pixels.

    Args:
        in_channels: channels of the features.
        hidden_channels: channels of both hidden layers.
        out_channels: channels of the output; in segmentation the number of categories.
        dense: 1x1 convolutions for feature maps (B, C, H, W), the last one with bias; otherwise
            linear layers without bias for vectors (N, C).
        normalize_output: whether to have the last normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dense: bool = True,
        normalize_output: bool = True,
    ) -> None:
        super().__init__(
            *_hidden(in_channels, hidden_channels, dense),
            *_hidden(hidden_channels, hidden_channels, dense),
            _linear(hidden_channels, out_channels, dense, bias=dense),
            *([_norm(out_channels, dense, affine=False)] if normalize_output else []),
        )


class Predictor(_Head):
    """h: one hidden layer with batch normalisation and ReLU, then a plain output with bias.

    Args:
        channels: channels of the projector's output, and of this one's.
        hidden_channels: channels of the hidden layer.
        dense: 1x1 convolutions for maps (B, C, H, W); otherwise linear layers for vectors (N, C).
    """

    def __init__(self, channels: int, hidden_channels: int, dense: bool = True) -> None:
        super().__init__(
            *_hidden(channels, hidden_channels, dense),
            _linear(hidden_channels, channels, dense, bias=True),
        )


def _hidden(in_channels: int, out_channels: int, dense: bool) -> Iterator[nn.Module]:
    yield _linear(in_channels, out_channels, dense, bias=False)
    yield _norm(out_channels, dense, affine=True)
    yield nn.ReLU(inplace=True)


def _linear(in_channels: int, out_channels: int, dense: bool, bias: bool) -> nn.Module:
    if dense:
        return nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=bias)
    return nn.Linear(in_channels, out_channels, bias=bias)


def _norm(channels: int, dense: bool, affine: bool) -> nn.Module:
    return (nn.BatchNorm2d if dense else nn.BatchNorm1d)(channels, affine=affine)
