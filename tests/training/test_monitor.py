"""The collapse monitor: its numbers, what it catches, what it leaves alone."""

import json
import math
import warnings

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from densesiam import cli
from densesiam.models import Predictor, Projector
from densesiam.training.monitor import (
    CollapseMonitor,
    assignment_metrics,
    balanced_floor,
    diagnose,
    effective_rank_share,
    feature_metrics,
    gradient_norms,
    loss_metrics,
    mean_explained_share,
    normalised_std,
    sample_vectors,
    singular_values,
)
from densesiam.training.report import RunReport
from tests.methods.support import apart, scenes, tiny
from tests.tolerance import about, assert_close, terms_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Numbers


def test_normalised_std_of_even_directions_is_1():
    assert normalised_std(normal(4096, 64)) == pytest.approx(1, abs=0.01)
    assert normalised_std(torch.ones(16, 64)) == 0
    # Two opposite directions: of every channel's +-1/8 the deviation is sqrt(N / (N - 1)) / 8.
    opposite = torch.ones(100, 64)
    opposite[::2] = -7.0
    assert normalised_std(opposite) == about(math.sqrt(100 / 99), terms=100 + 64)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (12, 12)])
def test_singular_values_are_those_of_the_decomposition(shape):
    vectors = normal(*shape) * torch.arange(1, shape[1] + 1) + 3
    expected = torch.linalg.svdvals(vectors.double() - vectors.double().mean(0))
    expected = expected[: min(shape[0] - 1, shape[1])]
    # Roots of the eigenvalues of a matrix, each rounded as the largest eigenvalue is.
    rms = expected[0] ** 2 / expected
    assert_close(singular_values(vectors), expected, terms=sum(shape), rms=rms)


def test_spectrum_metrics_by_hand():
    flat = torch.ones(10, dtype=torch.float64)
    assert mean_explained_share(flat) == pytest.approx(0.55)
    assert effective_rank_share(flat) == pytest.approx(1)
    single = torch.tensor([3.0, 0, 0, 0])
    assert mean_explained_share(single) == 1
    assert effective_rank_share(single) == pytest.approx(0.25)
    uneven = torch.tensor([3.0, 1.0])
    assert mean_explained_share(uneven) == pytest.approx((0.75 + 1) / 2)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank_share(uneven) == pytest.approx(math.exp(entropy) / 2)
    assert feature_metrics(torch.ones(8, 5)) == {
        "std": 0,
        "explained_share": 1,
        "effective_rank": 0,
    }


def test_assignment_metrics_by_hand():
    certain = 100 * torch.eye(4)
    z1, z2 = certain[[0, 0, 1, 1]], certain[[0, 0, 1, 0]]
    metrics = assignment_metrics(z1, z2)
    entropy = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(3 / 8))
    assert metrics["usage_perplexity"] == pytest.approx(math.exp(entropy))
    assert metrics["dead_classes"] == pytest.approx(0.5)
    assert metrics["max_probability"] == pytest.approx(1)
    assert metrics["agreement"] == pytest.approx(0.75)
    # Four vectors cannot have more than four of a hundred categories.
    z = 100 * torch.eye(100)
    assert assignment_metrics(z[:2], z[2:4])["dead_classes"] == 0


def test_loss_starts_and_ends_where_it_should():
    z1, z2 = normal(20000, 27), normal(20000, 27, seed=1)
    metrics = loss_metrics(torch.zeros_like(z1), z1, torch.zeros_like(z2), z2, "cross_entropy")
    assert metrics["loss"] == about(math.log(27), terms=20000 + 27, dtype="float64")  # 3.30
    assert metrics["floor"] == pytest.approx(2.85, abs=0.01)
    excess = metrics["loss"] - metrics["floor"]
    assert metrics["excess"] == about(excess, terms=20000 + 27, rms=3, dtype="float64")
    at_the_floor = loss_metrics(z2, z1, z1, z2, "cross_entropy")
    assert at_the_floor["excess"] == about(0, terms=20000 + 27, rms=3, dtype="float64")
    cosine = loss_metrics(2 * z2, z1, z1, z2, "cosine")
    assert cosine == {
        "loss": about(-1, terms=20000 + 27, dtype="float64"),
        "floor": -1,
        "excess": about(0, terms=20000 + 27, rms=1, dtype="float64"),
    }


def test_balanced_floor_is_that_of_hard_normalised_logits():
    for K in (2, 12, 27):
        labels = torch.arange(K).repeat(10)
        hard = torch.eye(K, dtype=torch.float64)[labels]
        z = (hard - hard.mean(0)) / hard.std(0, correction=0)
        entropy = torch.special.entr(z.softmax(1)).sum(1).mean()
        assert balanced_floor(K) == about(entropy, terms=11 * K, dtype="float64")


def test_gradient_norms():
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 1), "none": nn.ReLU()})
    (3 * model["one"].bias.sum() + 4 * model["one"].weight[0, 0]).backward()
    assert gradient_norms(model) == {"one": pytest.approx(math.sqrt(3**2 + 3**2 + 4**2))}


def test_samples_are_vectors_of_the_same_points():
    maps = normal(3, 5, 8, 9)
    few = sample_vectors(maps, 20)
    assert few.shape == (20, 5)
    everything = maps.movedim(1, -1).reshape(-1, 5)
    assert all((everything == vector).all(1).any() for vector in few)
    assert torch.equal(sample_vectors(2 * maps, 20), 2 * few)
    channels_last = maps.to(memory_format=torch.channels_last)
    assert torch.equal(sample_vectors(channels_last, 20), few)
    assert torch.equal(sample_vectors(maps, 1000), everything)
    assert torch.equal(sample_vectors(maps[:, :, 0, 0], 1000), maps[:, :, 0, 0])


# Planted failures, each with what must catch it; and health.


def low_rank():
    return normal(512, 8) @ normal(8, 128, seed=1)


def nearly_constant():
    return 1 + 0.01 * normal(512, 128)


def test_low_rank_is_caught_by_the_spectrum_alone():
    metrics = feature_metrics(low_rank())
    assert metrics["std"] > 0.9  # by itself the picture of health
    found = diagnose({f"encoder/{name}": value for name, value in metrics.items()})
    assert set(found) == {"encoder/effective_rank", "encoder/explained_share"}
    assert (
        "fill few dimensions (effective_rank 0.06, below 0.08)" in found["encoder/effective_rank"]
    )


def test_nearly_constant_features_are_caught_by_their_spread_alone():
    metrics = feature_metrics(nearly_constant())
    assert metrics["effective_rank"] > 0.9
    found = diagnose({f"encoder/{name}": value for name, value in metrics.items()})
    assert found == {"encoder/std": "encoder: the vectors all point one way (std 0.01, below 0.2)"}


@pytest.mark.parametrize("K", [2, 12, 27, 128])
def test_a_single_category_is_caught(K):
    z = 0.1 * normal(2, 512, K)
    z[:, :, 0] += 8
    samples = {"encoder": [normal(256, 64)] * 2, "z": list(z), "p": list(z)}
    found = diagnose(CollapseMonitor().measure(samples), num_classes=K)
    assert "z/usage_perplexity" in found
    assert ("z/dead_classes" in found) == (K > 4)
    assert all(name.split("/")[0] != "encoder" for name in found)


def test_a_loss_too_good_and_categories_too_even():
    K = 12
    certain = 20 * torch.eye(K)[torch.arange(512) % K]
    found = diagnose(CollapseMonitor().measure({"z": [certain] * 2, "p": [certain] * 2}), K)
    assert set(found) == {"similarity/loss"}
    flat = 0.05 * normal(512, K)
    found = diagnose(CollapseMonitor().measure({"z": [flat] * 2, "p": [flat] * 2}), K)
    assert set(found) == {"similarity/floor"}


def test_what_is_not_finite_and_what_does_not_learn():
    broken = normal(64, 8)
    broken[0, 0] = math.nan
    found = diagnose({f"p/{name}": value for name, value in feature_metrics(broken).items()})
    assert found["p/effective_rank"] == "p: effective_rank is nan"
    assert diagnose({"gradient_norm/encoder": 0.0}) == {
        "gradient_norm/encoder": "encoder: no gradient arrives"
    }


@pytest.mark.parametrize("K", [2, 5, 12, 27, 128])
def test_health_raises_nothing(K):
    z1 = normal(512, K)
    z2 = 0.7 * z1 + 0.7 * normal(512, K, seed=1)  # of the same points, as a network sees them
    spectrum = torch.arange(1, 65) ** -1.0  # as natural features have it
    features = torch.relu(normal(512, 64, seed=2) * spectrum @ normal(64, 128, seed=3))
    samples = {"encoder": [features[:256], features[256:]], "z": [z1, z2], "p": [z1, z2]}
    metrics = CollapseMonitor().measure(samples)
    assert diagnose(metrics, K) == {}
    assert diagnose(CollapseMonitor(kind="cosine").measure(samples)) == {}


def test_a_bottleneck_is_not_held_against_a_predictor():
    torch.manual_seed(0)
    predictor = Predictor(256, 16)
    assert predictor.max_rank == 16
    assert Projector(8, 32, 64).max_rank == 8
    output = predictor(normal(32, 256, 4, 4)).detach().movedim(1, -1).flatten(0, -2)

    def findings(max_rank):
        metrics = feature_metrics(output, max_rank)
        return diagnose({f"p/{name}": value for name, value in metrics.items()})

    assert "p/effective_rank" in findings(None)
    assert findings(predictor.max_rank) == {}


# The callback


def fit(monitor, model=None, epochs=3, callbacks=(), **options):
    torch.manual_seed(0)
    model = model or tiny(num_classes=4)
    defaults = {"logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[*([monitor] if monitor else []), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | options),
    )
    trainer.fit(model, DataLoader(apart(scenes()), batch_size=4))
    return trainer


class Recorder(L.pytorch.loggers.logger.DummyLogger):
    """A logger that keeps the monitor's scalars."""

    def __init__(self):
        super().__init__()
        self.steps = {}

    def log_metrics(self, metrics, step):
        if any(name.startswith("monitor/") for name in metrics):
            self.steps[step] = metrics


def test_healthy_training_is_measured_and_raises_nothing(tmp_path):
    monitor, logger = CollapseMonitor(every_n_steps=2), Recorder()
    report = RunReport(tmp_path / "summary.json")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapse")
        model = fit(monitor, callbacks=[report], logger=logger).lightning_module
    assert list(logger.steps) == [0, 2, 4]  # of six
    assert monitor._max_rank == {"z": model.projector.max_rank, "p": model.predictor.max_rank}
    expected = {
        *(f"{part}/{m}" for part in ("encoder", "z", "p") for m in feature_metrics(normal(4, 4))),
        *(f"z/{m}" for m in ("usage_perplexity", "dead_classes", "max_probability", "agreement")),
        *(f"similarity/{m}" for m in ("loss", "floor", "excess")),
    }
    scalars = {name.removeprefix("monitor/") for name in logger.steps[0]}
    assert {name for name in scalars if not name.startswith("gradient_norm/")} == expected
    assert {"gradient_norm/encoder", "gradient_norm/projector"} < scalars
    assert monitor.findings == {}
    epochs = json.loads(report.path.read_text())["epochs"]
    assert epochs[1]["monitor/z/std"] == pytest.approx(logger.steps[2]["monitor/z/std"])


def test_measures_what_the_method_computes():
    """On all vectors, the loss is the method's own."""
    monitor, logger = CollapseMonitor(every_n_steps=1, vectors=10**6), Recorder()
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, model, *_):
            seen.append(
                {n: float(trainer.callback_metrics[f"train/{n}"]) for n in ("sim", "agreement")}
            )

    fit(monitor, logger=logger, callbacks=[Watch()], epochs=1)
    for measured, logged in zip(logger.steps.values(), seen, strict=True):
        pixels = 2 * 8 * 8 * 12  # at the most
        assert measured["monitor/similarity/loss"] == about(logged["sim"], terms=pixels)
        assert measured["monitor/z/agreement"] == about(logged["agreement"], terms=pixels)


def test_a_head_called_once_for_both_views_is_heard_twice():
    head, views = Predictor(6, 8), torch.randn(2, 3, 6, 4, 4)
    heard = []
    for calls in ([{"input": v} for v in views], [{"input": views.flatten(0, 1), "views": 2}]):
        monitor = CollapseMonitor(vectors=64)
        monitor._samples["p"] = []
        hook = head.register_forward_hook(monitor._listener("p"), with_kwargs=True)
        for call in calls:
            head(**call)
        hook.remove()
        heard.append(monitor._samples["p"])
    assert_close(heard[1], heard[0], terms_of(head))
    assert len(heard[0]) == 2


def test_watching_changes_nothing():
    class Losses(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, *_):
            self.seen.append(float(trainer.callback_metrics["train/loss"]))

    watched, alone = Losses(), Losses()
    model = tiny(num_classes=4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(CollapseMonitor(every_n_steps=1), model, callbacks=[watched])
    assert not any(module._forward_hooks for module in model.modules())
    model.load_state_dict(state)
    fit(None, model, callbacks=[alone])
    assert watched.seen == alone.seen


def test_collapse_in_training_is_warned_of_once():
    model = tiny(num_classes=12, normalize_z=False, lr=1e-6, region_weight=0.0)
    with torch.no_grad():
        last = model.projector[-1]
        last.weight *= 1e-3
        last.bias.zero_()[0] = 8.0  # one category for all
    monitor = CollapseMonitor(every_n_steps=1)
    with pytest.warns(UserWarning, match="collapse") as caught:
        fit(monitor, model)
    texts = [str(w.message) for w in caught if "collapse" in str(w.message)]
    assert len(texts) == 1
    assert texts[0].startswith("step 1: this looks like collapse: ")  # when it has held twice
    assert "z: few categories have nearly everything (usage_perplexity 1.0 of 12" in texts[0]
    assert "z: the vectors all point one way" in texts[0]
    assert "\n" not in texts[0]
    assert "encoder" not in " ".join(monitor.findings)


def test_accumulated_batches_are_one_step():
    monitor, logger = CollapseMonitor(every_n_steps=1), Recorder()
    model = tiny(num_classes=4)
    fit(monitor, model, logger=logger, accumulate_grad_batches=2)
    assert list(logger.steps) == [0, 1, 2]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_that_fails_leaves_no_hooks():
    class Fail(L.Callback):
        def on_before_backward(self, *_):
            raise RuntimeError("out of luck")

    model = tiny(num_classes=4)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(CollapseMonitor(), model, callbacks=[Fail()])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("command", ["fit", "pretrain"])
def test_every_run_is_watched(command, tmp_path):
    model = {"backbone": "test_resnet", "hidden_channels": 8, "lr": 0.01, "region_start": 0}
    settings = {
        **{f"model.{name}": value for name, value in model.items()},
        "model.strides": "[4, 8]" if command == "fit" else "[16]",
        "data.train": "samples",
        "data.batch_size": 4,
        "data.views": "SegmentationViews" if command == "fit" else "TwoCrops",
        "data.views.size": 32,
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
        "trainer.monitor_every_n_steps": 1,
        "output": tmp_path / "run",
    }
    if command == "fit":
        settings |= {"data.views.resize": 40, "data.views.crop": "null"}
    assert cli.main([command, *(f"--{name}={value}" for name, value in settings.items())]) == 0
    epoch = json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"][0]
    assert 0 < epoch["monitor/encoder/std"] <= 1.1
    assert ("monitor/z/usage_perplexity" in epoch) == (command == "fit")
    assert ("monitor/dense_p/std" in epoch) == (command == "pretrain")
    assert epoch["monitor/similarity/excess"] > 0
    assert epoch["monitor/gradient_norm/projector"] > 0


def test_wrong_settings():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        CollapseMonitor(every_n_steps=0)
    with pytest.raises(ValueError, match="vectors must be at least 4"):
        CollapseMonitor(vectors=2)
