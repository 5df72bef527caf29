"""RegionSim, written out with loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densesiam.methods.losses.region import RegionSim, region_contrast
from tests.tolerance import about, assert_close, terms_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def contrast_by_loops(p, z, tau, images):
    total = 0.0
    for b in images:
        for n in range(p.shape[1]):
            cosines = [
                float(torch.cosine_similarity(p[b, n].detach(), z[b, m].detach(), dim=0))
                for m in range(z.shape[1])
            ]
            exponentials = [math.exp(c / tau) for c in cosines]
            total -= math.log(exponentials[n] / sum(exponentials))
    return total / (len(images) * p.shape[1])


@pytest.mark.parametrize("weight", [[True, True, True], [True, False, True], [False, True, False]])
def test_contrast_is_within_one_image(weight):
    p, z = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    images = [b for b, counts in enumerate(weight) if counts]
    expected = contrast_by_loops(p, z, 0.3, images)
    found = region_contrast(p, z, 0.3, torch.tensor(weight)).item()
    assert found == about(expected, terms=6 + 12, rms=1 / 0.3, dtype="float64")


def test_contrast_of_regions_that_look_alike_is_the_log_of_their_number():
    p = torch.randn(2, 1, 6).expand(2, 5, 6)
    found = float(region_contrast(p, p, 0.1, torch.ones(2)))
    assert found == about(math.log(5), terms=6 + 10, rms=1 / 0.1)


def test_contrast_of_no_image_is_zero_with_zero_gradient():
    p = torch.randn(2, 4, 6, requires_grad=True)
    loss = region_contrast(p, torch.randn(2, 4, 6), 0.1, torch.zeros(2))
    loss.backward()
    assert loss == 0
    assert p.grad.eq(0).all()


def test_contrast_keeps_half_types_precision():
    p, z = torch.randn(2, 2, 8, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = region_contrast(p, z, 0.1, torch.ones(2))
    # Cosines of 16 channels, each divided by 0.1, of 8 regions.
    expected = region_contrast(p.float(), z.float(), 0.1, torch.ones(2))
    assert_close(loss, expected, terms=16 + 8, rms=1 / 0.1)


def views(channels=6, regions=4):
    features = torch.randn(2, 3, channels, 5, 7, requires_grad=True)
    logits = torch.randn(2, 3, regions, 5, 7, requires_grad=True)
    return features, logits


def test_loss_is_the_symmetric_contrast_of_pooled_features():
    region = RegionSim(6, 8, tau=0.2)
    features, logits = views()
    weight = torch.tensor([True, False, True])
    loss = region(features[0], logits[0], features[1], logits[1], weight)

    p, z = [], []
    for f, x in zip(features, logits, strict=True):
        pooled = torch.einsum("bnhw,bchw->bnc", x.softmax(1), f).reshape(12, 6)
        z.append(region.projector(pooled))
        p.append(region.predictor(z[-1]).view(3, 4, 8))
        z[-1] = z[-1].view(3, 4, 8)
    expected = 0.5 * contrast_by_loops(p[0].double(), z[1].double(), 0.2, [0, 2])
    expected += 0.5 * contrast_by_loops(p[1].double(), z[0].double(), 0.2, [0, 2])
    assert loss.item() == about(expected, terms_of(region), rms=1 / 0.2)


class Detached(nn.Module):
    """A predictor that stops all gradients to its input."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, z):
        return F.layer_norm(z.detach(), (8,)) + self.bias


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_gradient_through_z(stop_gradient):
    region = RegionSim(6, 8, stop_gradient=stop_gradient)
    region.predictor = Detached()
    features, logits = views()
    region(features[0], logits[0], features[1], logits[1], torch.ones(3)).backward()
    assert region.predictor.bias.grad.abs().sum() > 0
    # With the predictor cut, all that is left comes through the targets.
    assert (features.grad is None) == stop_gradient


def test_gradient_reaches_features_and_masks():
    features, logits = views()
    RegionSim(6, 8)(features[0], logits[0], features[1], logits[1], torch.ones(3)).backward()
    assert (features.grad.abs().sum((2, 3, 4)) > 0).all()
    assert (logits.grad.abs().sum((2, 3, 4)) > 0).all()


def test_tau_must_be_positive():
    with pytest.raises(ValueError, match=r"tau.*must be positive, got 0"):
        RegionSim(6, tau=0)
