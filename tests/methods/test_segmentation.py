"""The segmentation method's losses: values, gradients, geometry, and what is left out.

Trainers, checkpoints and optimisers: test_training.py.
"""

import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densesiam import ops
from densesiam.methods import DenseSiamSegmentation
from tests.methods.support import batch, tiny
from tests.tolerance import assert_close, terms_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*self.trainer.* reference is not registered")


# Values


def test_weights_follow_the_class_counts():
    weights = DenseSiamSegmentation().weights
    assert weights == {
        "sim": pytest.approx(0.5955, abs=5e-5),
        "aux": pytest.approx(0.4045, abs=5e-5),
        "pseudo_label": 1.0,
        "region": 0.1,
    }
    assert tiny(aux_classes=None).weights["sim"] == 1
    assert tiny(aux_weight=0.0).weights["sim"] == 1
    assert tiny(sim_weight=0.25).weights["sim"] == 0.25


def soft_cross_entropy(p, z, images):
    losses = -(z.softmax(1) * p.log_softmax(1)).sum(1)
    return losses[images].mean()


def hard_cross_entropy(z, teacher, images, rebalance):
    labels = teacher.argmax(1)
    losses = F.cross_entropy(z, labels, reduction="none")[images]
    labels = labels[images]
    counts = torch.bincount(labels.flatten(), minlength=z.shape[1])
    weights = {
        "none": torch.ones(len(counts)),
        "frequency": counts / counts.sum(),
        "inverse": counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)),
    }[rebalance]
    return (weights[labels] * losses).mean()


@pytest.mark.parametrize(
    ("rebalance", "view"),
    [("none", "same"), ("none", "cross"), ("frequency", "same"), ("inverse", "cross")],
)
@pytest.mark.parametrize("images", [[0, 1, 2], [0, 2]], ids=["all pairs", "one invalid"])
def test_losses_are_the_papers(rebalance, view, images):
    model = tiny(rebalance=rebalance, pseudo_label_view=view)
    features1, features2 = torch.randn(2, 3, 16, 8, 12)
    weight = torch.tensor([b in images for b in range(3)])
    losses, z1, z2 = model.losses(features1, features2, weight)
    heads = [head for name, head in model.named_children() if name != "encoder"]
    terms = terms_of(*heads) + 2 * 8 * 12  # of the heads, and of means over pixels
    assert_close(z1, model.projector(features1), terms)
    assert_close(z2, model.projector(features2), terms)

    p1, p2 = model.predictor(z1), model.predictor(z2)
    expected = 0.5 * soft_cross_entropy(p1, z2, images) + 0.5 * soft_cross_entropy(p2, z1, images)
    assert_close(losses["sim"], expected, terms)
    a1, a2 = model.aux_projector(features1), model.aux_projector(features2)
    b1, b2 = model.aux_predictor(a1), model.aux_predictor(a2)
    expected = 0.5 * soft_cross_entropy(b1, a2, images) + 0.5 * soft_cross_entropy(b2, a1, images)
    assert_close(losses["aux"], expected, terms)
    teachers = (z1, z2) if view == "same" else (z2, z1)
    expected = 0.5 * hard_cross_entropy(z1, teachers[0], images, rebalance)
    expected = expected + 0.5 * hard_cross_entropy(z2, teachers[1], images, rebalance)
    assert_close(losses["pseudo_label"], expected, terms)
    assert_close(losses["region"], model.region(features1, z1, features2, z2, weight), terms)


def test_total_is_the_weighted_sum_of_the_losses():
    model = tiny(pseudo_label_weight=3.0)
    logged = {}
    model.log_dict = lambda values, **options: logged.update(values)
    total = model.training_step(batch())
    expected = sum(
        weight * logged[f"train/{name}"] for name, weight in model.weights.items() if weight
    )
    assert_close(total.detach(), expected, terms=4)
    assert logged["train/loss"] == total
    assert logged["train/valid_pairs"] == 1
    assert {f"train/{name}" for name in ("usage_perplexity", "agreement")} < set(logged)


def test_initial_losses_are_those_of_normal_logits():
    model = tiny(num_classes=27, aux_classes=128, hidden_channels=128)
    features = torch.randn(2, 4, 16, 24, 24)
    losses = model.losses(*features, torch.ones(4))[0]
    # The projector of noise is not quite normal, and the predictor is not quite flat.
    assert losses["sim"].item() == pytest.approx(math.log(27), abs=0.15)
    assert losses["aux"].item() == pytest.approx(math.log(128), abs=0.15)
    assert losses["pseudo_label"].item() == pytest.approx(1.77, abs=0.15)


# What is left out


OPERATION_OF = {
    "sim": ("pixel_similarity", 2),
    "aux": ("pixel_similarity", 2),
    "pseudo_label": ("pseudo_label_loss", 2),
    "region": ("region_pool", 2),
}


@pytest.mark.parametrize("zero", ["sim", "aux", "pseudo_label", "region"])
def test_a_loss_of_weight_zero_is_not_computed(zero, monkeypatch):
    calls = dict.fromkeys(("pixel_similarity", "pseudo_label_loss", "region_pool"), 0)

    def counted(name, function):
        def wrapper(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return wrapper

    for name in calls:
        monkeypatch.setattr(ops, name, counted(name, getattr(ops, name)))

    expected = dict.fromkeys(calls, 0)
    for loss, (name, times) in OPERATION_OF.items():
        expected[name] += times * (loss != zero)
    model = tiny(**{f"{zero}_weight": 0.0})
    model.training_step(batch()).backward()
    assert calls == expected
    # No head without a loss: nothing would ever train it.
    assert all(p.grad is not None for p in model.parameters())
    head = {"sim": "predictor", "aux": "aux_projector", "region": "region"}.get(zero)
    assert head is None or not hasattr(model, head)


def test_region_costs_nothing_before_its_start(monkeypatch):
    monkeypatch.setattr(ops, "region_pool", None)
    tiny(region_start=1).training_step(batch())


# Gradients


class Cut(nn.Module):
    """A predictor that passes no gradient on to z, but has one of its own."""

    def __init__(self, channels):
        super().__init__()
        # At zero the two halves of a symmetric loss would cancel.
        self.bias = nn.Parameter(torch.linspace(-1, 1, channels).view(-1, 1, 1))

    def forward(self, z):
        return z.detach() + self.bias


def test_targets_of_the_similarity_receive_no_gradient():
    model = tiny(region_weight=0.0, pseudo_label_weight=0.0, aux_classes=None)
    model.predictor = Cut(5)
    model.training_step(batch()).backward()
    assert model.predictor.bias.grad.abs().sum() > 0
    # With the predictor cut, only the targets could pass a gradient on.
    assert all(p.grad is None for p in model.projector.parameters())


@pytest.mark.parametrize("view", ["same", "cross"])
def test_pseudo_labels_receive_no_gradient(view):
    model = tiny(sim_weight=0.0, aux_classes=None, region_weight=0.0, pseudo_label_view=view)
    z1, z2 = (torch.randn(2, 5, 4, 4, requires_grad=True) for _ in range(2))
    model.category_losses(z1, z2, z1, z2, torch.ones(2))["pseudo_label"].backward()
    teacher = z1 if view == "same" else z2
    hard = F.one_hot(teacher.argmax(1), 5).movedim(-1, 1)
    # The cross-entropy's own gradient and no more: softmax minus label, half the mean of 32 pixels.
    assert_close(z1.grad, 0.5 * (z1.softmax(1) - hard) / 32, terms=3 * 5)


def test_everything_trainable_learns():
    model = tiny()
    model.training_step(batch()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # Batch normalisation takes away what a bias before it adds, and the backbone's fresh
        # residual branches end in a factor of 0.
        if not name.endswith("projector.6.bias") and "backbone.layer" not in name:
            assert parameter.grad.abs().sum() > 0, name


def test_invalid_pairs_leave_no_trace():
    model = tiny()
    features1, features2 = torch.randn(2, 3, 16, 8, 12, requires_grad=True).unbind()
    z1, z2 = torch.randn(2, 3, 5, 8, 12, requires_grad=True).unbind()
    model.eval()  # batch normalisation would mix the images
    weight = torch.tensor([True, False, True])
    losses = model.category_losses(features1, features2, z1, z2, weight)
    losses["aux"] = model.losses(features1, features2, weight)[0]["aux"]
    for name, loss in losses.items():
        gradients = torch.autograd.grad(
            loss, (features1, features2, z1, z2), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g[0].abs().sum() > 0 for g in gradients), name
        assert all(g is None or g[1].eq(0).all() for g in gradients), name


# Geometry


class Position(nn.Module):
    """An encoder whose features are an exact, linear function of the image: its 4x4 means."""

    out_channels = 3
    stride = 4

    def forward(self, images):
        return F.avg_pool2d(images, 4)


def coordinates(crop, flip, height, width):
    """A view (3, height, width) that shows the source coordinates x, y of each of its pixels."""
    left, top, right, bottom = crop.tolist()
    x = left + (torch.arange(width) + 0.5) / width * (right - left)
    y = top + (torch.arange(height) + 0.5) / height * (bottom - top)
    y, x = torch.meshgrid(y, x.flip(0) if flip else x, indexing="ij")
    return torch.stack([x, y, x + y])


def coordinate_batch(crop1, crop2, flips, size1=(32, 48), size2=(64, 64)):
    crop1, crop2 = torch.tensor([crop1] * 4), torch.tensor([crop2] * 4)
    flip1, flip2 = torch.tensor(flips).T
    return {
        "view1": torch.stack(
            [coordinates(c, f, *size1) for c, f in zip(crop1, flip1, strict=True)]
        ),
        "view2": torch.stack(
            [coordinates(c, f, *size2) for c, f in zip(crop2, flip2, strict=True)]
        ),
        "crop1": crop1,
        "crop2": crop2,
        "flip1": flip1,
        "flip2": flip2,
    }


FLIPS = list(itertools.product([False, True], repeat=2))


def test_losses_see_the_same_points_in_both_views():
    model = tiny(channels=16)
    model.encoder = Position()
    # Half a cell from view 2's edge sampling is linear still; nearer, it repeats the border.
    data = coordinate_batch([130.0, 60.5, 211.0, 140.25], [100.0, 40.0, 228.0, 168.0], FLIPS)
    features1, features2, weight = model.aligned_features(data)
    assert weight.all()
    # A coordinate takes a dozen steps from box to view to source, of up to 350.
    assert_close(features1, features2, terms=12, rms=350)
    assert features1.shape == (4, 3, 8, 12)
    # The flips are in the data: not all four maps are one.
    assert (features1[0] - features1[2]).abs().max() > 1


@pytest.mark.parametrize(
    ("crop1", "within"),
    [
        ([100.0, 40.0, 228.0, 168.0], True),
        ([99.95, 40.0, 228.05, 168.0], True),  # rounding of whole pixels is no fault
        ([90.0, 50.0, 150.0, 110.0], False),
        ([300.0, 50.0, 350.0, 110.0], False),
    ],
)
def test_pairs_count_where_view_1_lies_within_view_2(crop1, within):
    model = tiny()
    model.encoder = Position()
    data = coordinate_batch(crop1, [100.0, 40.0, 228.0, 168.0], FLIPS)
    _, features2, weight = model.aligned_features(data)
    assert weight.tolist() == [within] * 4
    assert features2.isfinite().all()


@pytest.mark.parametrize("crop2", [[50.0, 50.0, 50.0, 90.0], [math.nan, 0.0, 9.0, 9.0]])
def test_a_broken_crop_counts_nowhere(crop2):
    model = tiny()
    data = batch()
    whole = model.training_step(data)
    data["crop2"][1] = torch.tensor(crop2)
    loss = model.training_step(data)
    loss.backward()
    assert loss.isfinite()
    assert loss != whole
    assert all(p.grad.isfinite().all() for p in model.parameters())


# Inference


def test_segment_is_z_in_evaluation_mode():
    model = tiny(normalize_stages=True)
    for seed in range(3):
        model.training_step(batch(seed=seed))  # running statistics of its own
    images = torch.randn(3, 3, 40, 52)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    z = model.segment(images)
    assert z.shape == (3, 5, 10, 13)
    assert not z.requires_grad
    assert model.training
    assert model.projector.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    # Images do not see one another.
    assert_close(model.segment(images[1:2]), z[1:2], terms_of(model))
    model.eval()
    assert_close(model(images), z, terms_of(model))
    assert not model.training


def test_prediction_is_at_the_sources_resolution():
    model = tiny()
    images = torch.randn(2, 3, 32, 32)
    boxes = torch.tensor([[0.0, 0.0, 100.0, 77.0], [10.0, 0.0, 60.0, 50.0]])
    first, second = model.predict_step({"image": images, "box": boxes})
    assert first.shape == (77, 100)
    assert second.shape == (50, 50)
    assert first.dtype == torch.int64
    enlarged = F.interpolate(model.segment(images[:1]), (77, 100), mode="bilinear")
    # Where two categories tie to within rounding, either may win.
    assert (first == enlarged.argmax(1)[0]).float().mean() > 0.999


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"aux_classes": 1}, "aux_classes must be at least 2"),
        ({"aux_classes": None, "aux_weight": 0.5}, "give aux_classes"),
        ({"sim_weight": -0.1}, "sim_weight must be finite and not negative, got -0.1"),
        ({"region_weight": math.nan}, "region_weight must be finite"),
        ({"pseudo_label_weight": math.inf}, "pseudo_label_weight must be finite"),
        (
            {
                "sim_weight": 0.0,
                "aux_weight": 0.0,
                "pseudo_label_weight": 0.0,
                "region_weight": 0.0,
            },
            "nothing to learn",
        ),
        (
            {
                "sim_weight": 0.0,
                "aux_weight": 0.0,
                "pseudo_label_weight": 0.0,
                "region_start": 0.5,
            },
            "RegionSim is the only loss.*region_start=0.5",
        ),
        ({"tau": 0.0}, "tau.*positive"),
        ({"tau": -1.0}, "tau.*positive"),
        ({"region_start": 1.0}, "region_start must be"),
        ({"region_start": -1}, "region_start must be"),
        ({"region_start": math.nan}, "region_start must be"),
        ({"region_start": True}, "region_start must be"),
        ({"rebalance": "equal"}, "rebalance must be one of none, frequency, inverse"),
        ({"pseudo_label_view": "both"}, "pseudo_label_view must be one of same, cross"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"base_lr": -1.0}, "base_lr must be positive"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"schedule": "step"}, "schedule must be"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize(("factor", "part"), [(1.0, "Encoder"), (0.0, "Projector")])
def test_one_pixel_cannot_be_normalised(factor, part):
    model = tiny(strides=(8,), backbone_lr_factor=factor)
    with pytest.raises(ValueError, match=f"{part}: .* two or more images"):
        model.training_step(batch(size=1, height=8, width=8))
