"""Folded networks compute what they did, and those that cannot be folded stay as they are."""

import copy

import pytest
import torch
from torch import nn

from densesiam.models import Encoder, Projector
from densesiam.models.inference import fold_normalisation, in_bfloat16
from tests.tolerance import assert_close, assert_within


def trained(network):
    """In float64, with statistics and scales that are none of a new network's."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return network.double().eval()


@pytest.mark.parametrize(
    ("backbone", "stages"), [("test_resnet", [8]), ("test_efficientnet", [8, 16])]
)
def test_results_stay_but_for_rounding(backbone, stages):
    encoder = Encoder(backbone, strides=stages, channels=8, normalize_stages=True)
    network = trained(nn.Sequential(encoder, Projector(8, 16, 5)))
    images = torch.randn(2, 3, 70, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        folded = fold_normalisation(network, images[:1])
        left = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        # The stages' own norms follow a sum or an activation.
        assert (folded, left) == (norms - left, len(stages))
        # A step of twenty or so layers of a few hundred terms each.
        assert_close(network(images), expected, terms=20 * 300)


class Reused(nn.Module):
    """A convolution whose result goes two ways."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.convolution(images)
        return self.norm(features) + features


class Twice(nn.Module):
    """A convolution and its normalisation that are called twice."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(self.convolution(self.norm(self.convolution(images))))


@pytest.mark.parametrize(
    "network", [Reused(), Twice(), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1))]
)
def test_what_cannot_be_folded_stays(network):
    network = trained(network)
    before = copy.deepcopy(network)
    images = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    assert fold_normalisation(network, images) == 0
    with torch.no_grad():
        assert torch.equal(network(images), before(images))
    assert network.state_dict().keys() == before.state_dict().keys()


def test_what_is_called_twice_keeps_no_other_from_being_folded():
    network = trained(nn.Sequential(Twice(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert fold_normalisation(network, torch.randn(1, 3, 5, 6, dtype=torch.float64)) == 1


def test_training_is_refused():
    with pytest.raises(ValueError, match="in training mode"):
        fold_normalisation(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]
)
def test_bfloat16_rounds_and_leaves_the_weights(backbone):
    stages = [16] if backbone == "test_vit" else [8, 16]
    encoder = Encoder(backbone, strides=stages, channels=8, normalize_stages=True)
    network = trained(nn.Sequential(encoder, Projector(8, 16, 5))).float()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        fold_normalisation(network, images[:1])
        expected = network(images)
        found = in_bfloat16(network)(images)
    assert found.dtype == expected.dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not torch.equal(found, expected)
    # Each of twenty or so layers rounds its results to 8 bits.
    eps = torch.finfo(torch.bfloat16).eps
    assert_within(found, expected, 20 * eps * expected.std(), "logits")


def frozen(**options):
    encoder = trained(Encoder("test_resnet", strides=[8], channels=8, **options))
    return encoder, torch.randn(2, 3, 64, 64, dtype=torch.float64)


def test_a_frozen_backbone_is_folded_and_keeps_its_state():
    encoder, images = frozen(backbone_lr_factor=0)
    before, state = encoder(images), copy.deepcopy(encoder.state_dict())
    draws = torch.get_rng_state()
    encoder.fold()
    assert torch.equal(torch.get_rng_state(), draws)
    after = encoder(images)
    assert not torch.equal(after, before)
    assert_close(after, before, terms=10 * 300)
    assert encoder.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(encoder.to(images)(images), before)


def test_a_folded_backbone_follows_its_weights():
    encoder, images = frozen(backbone_lr_factor=0)
    encoder.fold()
    state = encoder.state_dict()
    halved = {
        name: value / 2 if name.endswith("weight") else value for name, value in state.items()
    }
    encoder.load_state_dict(halved)
    other, _ = frozen(backbone_lr_factor=0)
    other.load_state_dict(halved)
    assert torch.equal(encoder(images), other(images))
    encoder.fold()
    assert torch.equal(encoder.float()(images.float()), other.float()(images.float()))


def test_a_backbone_that_learns_is_not_folded():
    encoder, images = frozen()
    before = encoder(images)
    encoder.fold()
    assert torch.equal(encoder(images), before)
