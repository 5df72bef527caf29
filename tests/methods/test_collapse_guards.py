"""The two guards against collapse, each on and off: what they do to z and to its gradient."""

import pytest
import torch

from densesiam.methods import DenseSiamSegmentation
from tests.methods.support import tiny
from tests.tolerance import assert_close

PIXSIM = {"aux_classes": None, "pseudo_label_weight": 0.0, "region_weight": 0.0}


def pixsim(model, z1, z2):
    return model.category_losses(z1, z2, z1, z2, torch.tensor([True, True, False]))["sim"]


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient(stop_gradient):
    torch.manual_seed(0)
    model = tiny(stop_gradient=stop_gradient, **PIXSIM)
    z1, z2 = (torch.randn(3, 5, 4, 6, requires_grad=True) for _ in range(2))
    loss = pixsim(model, z1, z2)
    gradient = torch.autograd.grad(loss, z1)[0]

    p1, p2 = model.predictor(z1), model.predictor(z2)
    targets = (z1.detach(), z2.detach()) if stop_gradient else (z1, z2)
    one, two = (
        -(z.softmax(1) * p.log_softmax(1)).sum(1)[:2].mean()
        for p, z in ((p1, targets[1]), (p2, targets[0]))
    )
    expected = 0.5 * one + 0.5 * two
    terms = 3 * z1.shape[1] + z1[:, 0].numel()  # sums over channels, and over pixels
    assert_close(loss, expected, terms, rms=3)
    assert_close(gradient, torch.autograd.grad(expected, z1)[0], terms)


@pytest.mark.parametrize("normalize_z", [True, False])
def test_last_normalisation(normalize_z):
    torch.manual_seed(0)
    model = tiny(normalize_z=normalize_z)
    for projector in (model.projector, model.aux_projector):
        z = projector(torch.randn(4, 16, 9, 9))
        variances = z.var((0, 2, 3), unbiased=False)
        assert bool((variances - 1).abs().max() < 0.01) is normalize_z


def test_both_guards_are_on_unless_said_otherwise():
    hyperparameters = DenseSiamSegmentation(backbone="test_resnet", strides=(4, 8)).hparams
    assert hyperparameters["stop_gradient"]
    assert hyperparameters["normalize_z"]
