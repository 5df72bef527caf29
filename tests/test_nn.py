"""Modules for other people's loops: each against its operation, RegionSim written out in loops."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densesiam import nn as modules
from densesiam import ops
from densesiam.nn import RegionSim, region_contrast, weighted_mean
from tests.tolerance import about, assert_close, terms_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


BLOCKED = """
import sys
for name in ("lightning", "pytorch_lightning", "timm", "torchvision", "torchmetrics"):
    sys.modules[name] = None  # importing it is an error
import torch
from densesiam.nn import PixelSimilarity, RegionSim
f = torch.randn(2, 3, 4, 4)
print(float(RegionSim(3)(f, f, f, f)), float(PixelSimilarity()(f, f)))
"""


def test_torch_is_all_that_the_modules_need():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    region, cosine = map(float, done.stdout.split())
    assert region > 0
    assert cosine == about(-1, terms=3)


MAPS = torch.randn(4, 2, 6, 5, 7, generator=torch.Generator().manual_seed(1))
P, Z, F1, LOGITS = MAPS
BOXES = torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.9, 0.1, 0.3, 0.7]])
WEIGHT = torch.tensor([0.25, 2.0])
COUNTS = torch.tensor([3, 1, 4, 1, 5, 9])


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        (modules.OverlapSample(4), (P, BOXES), ops.overlap_sample(P, BOXES, 4)),
        (modules.OverlapSample((2, 5)), (P, BOXES), ops.overlap_sample(P, BOXES, (2, 5))),
        (modules.PixelSimilarity(), (P, Z), ops.pixel_similarity(P, Z)),
        (
            modules.PixelSimilarity("cross_entropy", "none"),
            (P, Z, WEIGHT),
            ops.pixel_similarity(P, Z, "cross_entropy", WEIGHT, "none"),
        ),
        (
            modules.OverlapSimilarity(3),
            (P, Z, None, BOXES),
            ops.overlap_similarity(P, Z, None, BOXES, 3),
        ),
        (
            modules.OverlapSimilarity((3, 2), "cross_entropy", "none"),
            (P, Z, BOXES, None, WEIGHT),
            ops.overlap_similarity(P, Z, BOXES, None, (3, 2), "cross_entropy", WEIGHT, "none"),
        ),
        (modules.RegionPool(), (F1, LOGITS), ops.region_pool(F1, LOGITS)),
        (modules.RegionPool(normalize=True), (F1, LOGITS), ops.region_pool(F1, LOGITS, True)),
        (modules.PseudoLabelLoss(), (P,), ops.pseudo_label_loss(P)),
        (
            modules.PseudoLabelLoss("inverse", "none"),
            (P, Z, COUNTS, WEIGHT),
            ops.pseudo_label_loss(P, Z, "inverse", COUNTS, "none", WEIGHT),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_a_module_is_its_operation(module, arguments, expected):
    assert torch.equal(module(*arguments), expected)
    assert not list(module.parameters())


def test_modules_say_their_settings():
    assert str(modules.PixelSimilarity("cross_entropy")) == (
        "PixelSimilarity(kind='cross_entropy', reduction='mean')"
    )
    assert str(modules.OverlapSimilarity(7)) == (
        "OverlapSimilarity(size=7, kind='cosine', reduction='mean')"
    )


def test_weighted_mean():
    values = torch.tensor([[1.0, 3.0], [10.0, 20.0], [5.0, 7.0]])
    assert weighted_mean(values, torch.tensor([1.0, 0.0, 3.0])) == (2 + 3 * 6) / 4
    assert weighted_mean(values, torch.tensor([True, False, True])) == (2 + 6) / 2
    assert weighted_mean(values, torch.tensor([0.125, 0.0, 0.125])) == (2 + 6) / 2  # below 1 in all
    assert weighted_mean(values, torch.zeros(3)) == 0
    assert weighted_mean(values[::2]) == (2 + 6) / 2


def test_all_pairs_count_where_no_weight_is_given():
    region = RegionSim(6)
    assert torch.equal(region(P, Z, F1, LOGITS), region(P, Z, F1, LOGITS, torch.ones(2)))


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
