"""Pre-training's losses against plain PyTorch, its gradients, and what is left out.

The command, configurations and several processes: tests/cli/test_pretrain.py.
"""

import math
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from densesiam import ops
from densesiam.geometry import overlap_boxes
from densesiam.methods import DenseSiamPretraining, pretraining
from densesiam.nn import region_contrast
from tests.tolerance import assert_close, terms_of

# The loaders here are tiny, and the CPU is meant.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # Lightning's own use of libraries that have moved on.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*self.trainer.* reference is not registered")


def tiny(**options):
    """A model whose RegionSim is on from the start."""
    defaults = {
        "region_start": 0,
        "grid": 3,
        "num_regions": 5,
        "hidden_channels": 12,
        "predictor_channels": 6,
        "region_channels": 8,
        "backbone": "test_resnet",
        "strides": (8,),
        "lr": 0.05,
    }
    return DenseSiamPretraining(**(defaults | options))


def batch(size=4, side=32, seed=0):
    """Noise in two crops, whose overlaps, flips and sizes differ; all overlap."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, size, 3, side, side, generator=generator)
    corners = 20 * torch.rand(2, size, 2, generator=generator)
    sides = 30 + 20 * torch.rand(2, size, 2, generator=generator)
    crops = torch.cat([corners, corners + sides], dim=-1)
    return {
        "view1": views[0],
        "view2": views[1],
        "crop1": crops[0],
        "crop2": crops[1],
        "flip1": torch.arange(size) % 2 == 1,
        "flip2": torch.arange(size) % 4 > 1,
        "index": torch.arange(size),
    }


def geometry(data):
    return overlap_boxes(data["crop1"], data["crop2"], data["flip1"], data["flip2"])


# Mixed precision


def test_bfloat16_regions_have_the_gradients_of_plain_backward(monkeypatch):
    """The contrast computes in float32 where layers run in bfloat16, and so must its backward.

    Its gradients are taken within the forward, while autocast is on.
    """
    model, data = tiny(lambda1=0.0), batch()
    boxes1, boxes2, valid = geometry(data)
    features = torch.randn(2, 4, model.encoder.out_channels, 4, 4)
    learning = list(model.region.parameters())

    def step():
        # The cache would add a weight's gradients, of both views, up in bfloat16.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            assert model.dense_projector(features[0]).dtype == torch.bfloat16
            loss = model.losses(*features, boxes1, boxes2, valid)["region"]
        return loss, torch.autograd.grad(loss, learning)

    loss, early = step()
    monkeypatch.setattr(pretraining, "early_gradients", lambda loss, inputs, *_: loss(*inputs))
    plain_loss, late = step()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, plain_loss)
    assert all(map(torch.equal, early, late))


# Values


def grid_points(maps, boxes, K):
    """The K x K points of each box, one bilinear interpolation at a time."""
    B, C, H, W = maps.shape
    points = maps.new_zeros(B, C, K, K)
    for b in range(B):
        x1, y1, x2, y2 = boxes[b].tolist()
        for i in range(K):
            for j in range(K):
                x = min(max((x1 + (j + 0.5) / K * (x2 - x1)) * W - 0.5, 0), W - 1)
                y = min(max((y1 + (i + 0.5) / K * (y2 - y1)) * H - 0.5, 0), H - 1)
                left, top = min(int(x), W - 2), min(int(y), H - 2)
                u, v = x - left, y - top
                corner = maps[b, :, top : top + 2, left : left + 2]
                above, below = corner[:, 0], corner[:, 1]
                points[b, :, i, j] = (1 - v) * ((1 - u) * above[:, 0] + u * above[:, 1]) + v * (
                    (1 - u) * below[:, 0] + u * below[:, 1]
                )
    return points


def cosine_loss(p, z):
    """(B, *)"""
    return -(p / p.norm(dim=1, keepdim=True) * z / z.norm(dim=1, keepdim=True)).sum(1)


def soft_cross_entropy(p, z):
    return -(z.softmax(1) * p.log_softmax(1)).sum(1)


def plain_losses(model, features, boxes, images):
    """Equations 1 to 7, over the pairs `images` where it is about the overlap."""
    K, at = model.grid, model.sample_at
    D = {"cosine": cosine_loss, "cross_entropy": soft_cross_entropy}[model.similarity]
    losses = {}

    if model.global_extent == "image":
        counted, vectors = list(range(len(features[0]))), [f.mean((2, 3)) for f in features]
    else:
        counted = images
        size = features[0].shape[2]
        vectors = [
            grid_points(f, b, size).mean((2, 3)) for f, b in zip(features, boxes, strict=True)
        ]
    z1, z2 = (model.projector(v) for v in vectors)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    losses["sim"] = (cosine_loss(p1, z2) + cosine_loss(p2, z1))[counted].mean() / 2

    points = [grid_points(f, b, K) for f, b in zip(features, boxes, strict=True)]
    inputs = points if at == "encoder" else features
    z = [model.dense_projector(f) for f in inputs]
    if at == "projector":
        z = [grid_points(maps, b, K) for maps, b in zip(z, boxes, strict=True)]
    p = [model.dense_predictor(maps) for maps in z]
    if at == "predictor":
        p, z = (
            [grid_points(maps, b, K) for maps, b in zip(pair, boxes, strict=True)]
            for pair in (p, z)
        )
    losses["dense"] = (D(p[0], z[1]) + D(p[1], z[0]))[images].mean() / 2

    logits = [model.region_logits(maps) for maps in z]
    embedded = []
    for f, x in zip(points, logits, strict=True):
        pooled = torch.einsum("bnhw,bchw->bnc", x.softmax(1), f)
        projected = model.region.projector(pooled.flatten(0, 1))
        predicted = model.region.predictor(projected)
        embedded.append([t.unflatten(0, pooled.shape[:2]) for t in (predicted, projected)])
    losses["region"] = 0.5 * sum(
        region_contrast(p[images], z[images], 0.1, torch.ones(len(images)))
        for p, z in ((embedded[0][0], embedded[1][1]), (embedded[1][0], embedded[0][1]))
    )
    return losses


@pytest.mark.parametrize("at", ["encoder", "projector", "predictor"])
@pytest.mark.parametrize(
    ("similarity", "extent", "images", "num_regions"),
    [
        ("cosine", "image", [0, 1, 2, 3], 5),
        ("cross_entropy", "overlap", [0, 1, 3], 5),
        ("cosine", "overlap", [0, 1, 3], None),
    ],
)
def test_losses_are_the_papers(at, similarity, extent, images, num_regions):
    model = tiny(
        sample_at=at, similarity=similarity, global_extent=extent, num_regions=num_regions
    ).double()
    data = batch()
    for b in range(4):
        if b not in images:  # moved away, so that its crops have nothing in common
            data["crop2"][b] += 500
    boxes1, boxes2, valid = geometry(data)
    assert valid.nonzero().flatten().tolist() == images
    features = torch.randn(2, 4, model.encoder.out_channels, 5, 5, dtype=torch.float64).unbind()
    losses = model.losses(*features, boxes1, boxes2, valid)
    expected = plain_losses(model, features, (boxes1, boxes2), images)
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert_close(losses[name], loss, terms_of(model))


@pytest.mark.parametrize("at", ["encoder", "projector", "predictor"])
def test_views_may_differ_in_size(at):
    model = tiny(sample_at=at).double()
    boxes1, boxes2, valid = geometry(batch())
    features = [
        torch.randn(4, model.encoder.out_channels, *size, dtype=torch.float64)
        for size in ((5, 5), (4, 6))
    ]
    losses = model.losses(*features, boxes1, boxes2, valid)
    expected = plain_losses(model, features, (boxes1, boxes2), [0, 1, 2, 3])
    for name, loss in expected.items():
        assert_close(losses[name], loss, terms_of(model))


def test_total_is_the_weighted_sum_of_the_losses():
    model = tiny(lambda1=3.0, lambda2=0.25)
    logged = {}
    model.log_dict = lambda values, **options: logged.update(values)
    total = model.training_step(batch())
    expected = logged["train/sim"] + 3 * logged["train/dense"] + 0.25 * logged["train/region"]
    assert_close(total.detach(), expected, terms=3)
    assert logged["train/loss"] == total
    assert logged["train/valid_pairs"] == 1


class LinearHead(nn.Conv2d):
    """A head without batch normalisation, to which a batch of two views is like any other."""

    def forward(self, input, views):
        return super().forward(input)


class NoHead(nn.Identity):
    """The global branch's, whose loss plays no part."""

    def forward(self, input, views):
        return input


def test_sampling_positions_agree_where_heads_are_linear():
    features = torch.randn(2, 4, 6, 5, 5, dtype=torch.float64).unbind()
    boxes1, boxes2, valid = geometry(batch())
    heads = [LinearHead(6, 6, kernel_size=1).double() for _ in range(2)]
    results = []
    for at in ("encoder", "projector", "predictor"):
        model = tiny(sample_at=at, lambda2=0.0, hidden_channels=6).double()
        model.dense_projector, model.dense_predictor = heads
        model.projector = model.predictor = NoHead()
        results.append(model.losses(*features, boxes1, boxes2, valid)["dense"])
    for result in results[1:]:
        assert_close(result, results[0], terms_of(model))
    # With ReLU and normalisation between, they are three different losses.
    model = tiny(lambda2=0.0, hidden_channels=6, backbone="test_resnet").double()
    results = []
    features = torch.randn(2, 4, model.encoder.out_channels, 5, 5, dtype=torch.float64).unbind()
    for at in ("encoder", "projector", "predictor"):
        model.sample_at = at
        results.append(float(model.losses(*features, boxes1, boxes2, valid)["dense"].detach()))
    assert len({round(result, 4) for result in results}) == 3


def test_points_show_the_same_places_in_both_views():
    """Views whose pixels state their own position in the image, whatever crop and flip."""
    model = tiny(grid=5)
    data = batch()
    maps = []
    for view in ("1", "2"):
        views = []
        for crop, flip in zip(data[f"crop{view}"], data[f"flip{view}"], strict=True):
            left, top, right, bottom = crop.tolist()
            x = left + (torch.arange(32) + 0.5) / 32 * (right - left)
            y = top + (torch.arange(32) + 0.5) / 32 * (bottom - top)
            y, x = torch.meshgrid(y, x.flip(0) if flip else x, indexing="ij")
            views.append(torch.stack([x, y]))
        maps.append(torch.stack(views))
    boxes1, boxes2, valid = geometry(data)
    assert valid.all()
    points = model._points(tuple(maps), (boxes1, boxes2))
    # Points lie inside, away from the clamped border. A coordinate of the source takes a dozen
    # steps from box to view to source, at up to four times the crop's own size.
    assert_close(*points, terms=12, rms=4 * 70)
    assert (points[0][0] - points[0][1]).abs().max() > 1


# What is left out


def test_simsiam_is_this_without_the_dense_terms(monkeypatch):
    for name in ("overlap_sample", "overlap_similarity", "region_pool"):
        monkeypatch.setattr(ops, name, None)
    model = tiny(lambda1=0.0, lambda2=0.0)
    assert {name for name, _ in model.named_children()} == {"encoder", "projector", "predictor"}
    data = batch()
    data["crop2"] += 500  # the overlap is nothing to it
    loss = model.training_step(data)

    z = [model.projector(model.encoder(data[view]).mean((2, 3))) for view in ("view1", "view2")]
    p = [model.predictor(vectors) for vectors in z]
    expected = (cosine_loss(p[0], z[1]) + cosine_loss(p[1], z[0])).mean() / 2
    assert_close(loss, expected, terms_of(model))


@pytest.mark.parametrize(
    ("options", "parts", "absent"),
    [
        ({"lambda1": 0.0}, {"sim", "region"}, "dense_predictor"),
        ({"lambda2": 0.0}, {"sim", "dense"}, "region"),
        ({"region_start": 1}, {"sim", "dense"}, None),
        ({"lambda1": 0.0, "region_start": 1}, {"sim"}, "dense_predictor"),
    ],
)
def test_a_loss_without_weight_is_not_computed(options, parts, absent):
    model = tiny(**options)
    logged = {}
    model.log_dict = lambda values, **_: logged.update(values)
    model.training_step(batch()).backward()
    assert {name for name in ("sim", "dense", "region") if f"train/{name}" in logged} == parts
    assert absent is None or not hasattr(model, absent)
    if "region_start" not in options:
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("start", "expected"), [(2, [False, False, True, True]), (0.5, [False, False, True, True])]
)
def test_region_starts_on_time(start, expected):
    seen = []

    class Seen(Callback):
        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            seen.append("train/region" in trainer.callback_metrics)

    fit(tiny(region_start=start), Seen(), max_epochs=4)
    assert seen == expected
    with pytest.raises(ValueError, match="start at epoch 2, but the training has only epochs 0"):
        fit(tiny(region_start=2), max_epochs=2)


# Gradients


class Cut(nn.Module):
    """A predictor that passes no gradient on to z, but has one of its own."""

    def __init__(self, shape):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(shape))

    def forward(self, z, views):
        return z.detach() + self.bias


@pytest.mark.parametrize("at", ["encoder", "projector", "predictor"])
def test_targets_receive_no_gradient(at):
    model = tiny(sample_at=at, lambda2=0.0)
    model.predictor, model.dense_predictor = Cut((1, 12)), Cut((1, 12, 1, 1))
    model.training_step(batch()).backward()
    assert model.predictor.bias.grad.abs().sum() > 0
    assert model.dense_predictor.bias.grad.abs().sum() > 0
    # With the predictors cut, only the targets could pass a gradient on.
    for part in (model.encoder, model.projector, model.dense_projector):
        assert all(p.grad is None for p in part.parameters())


def test_everything_trainable_learns():
    model = tiny()
    model.training_step(batch()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # Batch normalisation takes away what a bias before it adds, and the backbone's fresh
        # residual branches end in a factor of 0.
        if name != "dense_projector.6.bias" and "backbone.layer" not in name:
            assert parameter.grad.abs().sum() > 0, name


def test_pairs_without_overlap_leave_no_trace_in_dense_losses():
    model = tiny()
    features1, features2 = torch.randn(
        2, 4, model.encoder.out_channels, 5, 5, requires_grad=True
    ).unbind()
    data = batch()
    data["crop2"][1] += 500
    boxes1, boxes2, valid = geometry(data)
    model.eval()  # batch normalisation would mix the images
    losses = model.losses(features1, features2, boxes1, boxes2, valid)
    for name in ("dense", "region"):
        for gradient in torch.autograd.grad(
            losses[name], (features1, features2), retain_graph=True
        ):
            assert gradient[0].abs().sum() > 0
            assert gradient[1].eq(0).all()
    # The global branch is about the whole views, and counts the pair.
    (gradient,) = torch.autograd.grad(losses["sim"], features1)
    assert gradient[1].abs().sum() > 0


def test_no_overlap_at_all_is_no_dense_loss():
    model = tiny()
    data = batch()
    data["crop2"] += 500
    logged = {}
    model.log_dict = lambda values, **_: logged.update(values)
    model.training_step(data).backward()
    assert logged["train/dense"] == logged["train/region"] == logged["train/valid_pairs"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# Trainings


def fit(model, *callbacks, **options):
    whole = batch(8)
    items = [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 1,
    }
    trainer = L.Trainer(callbacks=list(callbacks), **(defaults | options))
    trainer.fit(model, DataLoader(items, batch_size=8))
    return trainer


@pytest.mark.parametrize("fixed", [True, False])
def test_predictors_keep_their_learning_rate(fixed):
    model = tiny(fix_predictor_lr=fixed, warmup_epochs=1, backbone_lr_factor=0.5)
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    trainer = fit(model, Rates(), max_epochs=4)
    schedule = [1.0, *(0.5 * (1 + math.cos(math.pi * step / 3)) for step in range(3))]
    assert [r["other"] for r in rates] == pytest.approx([0.05 * s for s in schedule])
    assert [r["backbone"] for r in rates] == pytest.approx([0.025 * s for s in schedule])
    groups = {group["name"]: set(group["params"]) for group in trainer.optimizers[0].param_groups}
    assert set().union(*groups.values()) == set(model.parameters())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    if fixed:
        assert [r["fixed"] for r in rates] == [0.05] * 4
        predictors = {*model.predictor.parameters(), *model.dense_predictor.parameters()}
        assert groups["fixed"] == predictors
    else:
        assert "fixed" not in groups


def test_training_lowers_the_losses():
    model = tiny(lr=0.2)
    first, last = {}, {}

    class Values(Callback):
        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            (last if first else first).update(values)

    fit(model, Values(), max_epochs=30)
    for name in ("sim", "dense", "region"):
        assert last[f"train/{name}"] < first[f"train/{name}"] - 0.1, name


def test_any_backbone_and_a_feature_pyramid():
    model = tiny(backbone="test_efficientnet", fpn=True, strides=(4, 8, 16), channels=8)
    losses = model.training_step(batch())
    assert losses.isfinite()
    assert model.encoder.out_channels == 8
    assert model(batch()["view1"]).shape == (4, 8, 8, 8)


def test_heads_have_the_methods_shapes():
    model = tiny(hidden_channels=16, predictor_channels=4)
    for projector, predictor, kind in (
        (model.projector, model.predictor, nn.Linear),
        (model.dense_projector, model.dense_predictor, nn.Conv2d),
    ):
        rows = [len(layer.weight) for layer in projector if isinstance(layer, kind)]
        assert rows == [16, 16, 16]
        assert not projector[-1].affine
        assert [len(layer.weight) for layer in predictor if isinstance(layer, kind)] == [4, 16]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda1": -1.0}, "lambda1 must be finite and not negative, got -1.0"),
        ({"lambda2": math.nan}, "lambda2 must be finite"),
        ({"grid": 0}, "grid must be at least 1, got 0"),
        ({"num_regions": 1}, "num_regions must be at least 2, got 1"),
        ({"sample_at": "pixels"}, "sample_at must be one of encoder, projector, predictor"),
        ({"similarity": "euclid"}, "similarity must be one of cosine, cross_entropy"),
        ({"global_extent": "none"}, "global_extent must be one of image, overlap"),
        ({"region_start": 1.0}, "region_start must be"),
        ({"strides": (4, 8)}, "without a feature pyramid"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)
