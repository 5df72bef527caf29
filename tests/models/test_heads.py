"""Heads, layer by layer, as the method's table of networks has them."""

import copy

import pytest
import torch
from torch import nn

from densesiam.models import Predictor, Projector
from tests.tolerance import assert_close, terms_of


def layers(head):
    """Each layer's kind, shape and options, as text."""
    described = []
    for layer in head:
        match layer:
            case nn.Conv2d():
                assert (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))
                described.append(
                    ("conv", layer.in_channels, layer.out_channels, layer.bias is not None)
                )
            case nn.Linear():
                described.append(
                    ("linear", layer.in_features, layer.out_features, layer.bias is not None)
                )
            case nn.BatchNorm2d():
                described.append(("norm2d", layer.num_features, layer.affine))
            case nn.BatchNorm1d():
                described.append(("norm1d", layer.num_features, layer.affine))
            case nn.ReLU():
                described.append("relu")
    assert len(described) == len(head)
    return described


def test_dense_projector():
    assert layers(Projector(256, 128, 27)) == [
        ("conv", 256, 128, False),
        ("norm2d", 128, True),
        "relu",
        ("conv", 128, 128, False),
        ("norm2d", 128, True),
        "relu",
        ("conv", 128, 27, True),
        ("norm2d", 27, False),
    ]


def test_projector_without_its_last_normalisation():
    bare = Projector(256, 128, 27, normalize_output=False)
    assert layers(bare) == layers(Projector(256, 128, 27))[:-1]


def test_dense_predictor():
    assert layers(Predictor(27, 128)) == [
        ("conv", 27, 128, False),
        ("norm2d", 128, True),
        "relu",
        ("conv", 128, 27, True),
    ]


def test_region_projector():
    assert layers(Projector(256, 128, 64, dense=False)) == [
        ("linear", 256, 128, False),
        ("norm1d", 128, True),
        "relu",
        ("linear", 128, 128, False),
        ("norm1d", 128, True),
        "relu",
        ("linear", 128, 64, False),
        ("norm1d", 64, False),
    ]


def test_region_predictor():
    assert layers(Predictor(64, 128, dense=False)) == [
        ("linear", 64, 128, False),
        ("norm1d", 128, True),
        "relu",
        ("linear", 128, 64, True),
    ]


def test_projections_have_mean_0_and_variance_1():
    torch.manual_seed(0)
    z = Projector(8, 16, 5)(torch.randn(4, 8, 9, 9))
    assert_close(z.mean((0, 2, 3)), torch.zeros(5), terms=4 * 9 * 9, rms=1)
    # Normalisation adds 1e-5 to a variance of about 0.1.
    assert (z.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (Projector(8, 8, 8), (1, 8, 1, 1)),
        (Predictor(8, 8), (1, 8, 1, 1)),
        (Projector(8, 8, 8, dense=False), (1, 8)),
        (Predictor(8, 8, dense=False), (1, 8)),
    ],
)
def test_one_value_per_channel_cannot_be_normalised(head, shape):
    name = type(head).__name__
    with pytest.raises(ValueError, match=f"{name}: .*more than one value.*two or more images"):
        head.train()(torch.randn(shape))
    assert head.eval()(torch.randn(shape)).shape == shape
    pair = (2, *shape[1:])
    assert head.train()(torch.randn(pair)).shape == pair


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (Projector(6, 8, 5), (3, 6, 4, 2)),
        (Predictor(6, 8), (3, 6, 4, 2)),
        (Projector(6, 8, 5, dense=False), (4, 6)),
        (Predictor(6, 8, dense=False), (4, 6)),
    ],
)
def test_both_views_at_once_are_as_one_after_the_other(head, shape, training):
    head = copy.deepcopy(head).double().train(training)
    apart = copy.deepcopy(head)
    views = [scale * torch.randn(shape, dtype=torch.float64) + scale for scale in (1, 3)]
    together = head(torch.cat(views), views=2)
    expected = torch.cat([apart(view) for view in views])
    assert_close(together, expected, terms_of(head))
    weight = torch.randn_like(expected)
    (together * weight).sum().backward()
    (expected * weight).sum().backward()
    # Sums over both views' pixels. Of a bias before a normalisation the gradient is rounding only.
    terms = terms_of(head) + weight[:, 0].numel()
    size = max(p.grad.abs().max() for p in apart.parameters())
    for mine, theirs in zip(head.parameters(), apart.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad, terms, rms=size)
    for mine, theirs in zip(head.buffers(), apart.buffers(), strict=True):
        assert_close(mine, theirs, terms)


def test_views_must_be_equal_and_have_something_to_average():
    head = Predictor(6, 8, dense=False)
    with pytest.raises(ValueError, match="5 does not consist of 2 equal views"):
        head(torch.randn(5, 6), views=2)
    with pytest.raises(ValueError, match="more than one value per channel"):
        head(torch.randn(2, 6), views=2)
