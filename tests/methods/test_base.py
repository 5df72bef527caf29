"""Trainings as a whole: optimisers, resuming, checkpoints, validation, several processes."""

import copy
import math

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader

from densesiam.evaluation import ClusterMetrics
from densesiam.methods import DenseSiamSegmentation
from tests.methods.support import apart, batch, scenes, tiny
from tests.tolerance import assert_close

# The loaders here are tiny, and the CPU is meant.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # Lightning's own use of libraries that have moved on.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


class Losses(Callback):
    """Remember each step's logged values."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        names = ("loss", "sim", "aux", "pseudo_label", "region")
        metrics = trainer.callback_metrics
        self.steps.append(
            {n: metrics[f"train/{n}"].item() for n in names if f"train/{n}" in metrics}
        )


def items(count=8):
    """Pairs of views, one dict an item."""
    return apart(batch(count))


def trainer(tmp_path=None, **options):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": tmp_path is not None,
        "default_root_dir": tmp_path,
        "max_epochs": 1,
    }
    return L.Trainer(**(defaults | options))


def fit(model, ckpt_path=None, loader=None, **options):
    losses = Losses()
    run = trainer(callbacks=[losses], **options)
    run.fit(model, loader or DataLoader(items(), batch_size=4), ckpt_path=ckpt_path)
    return losses.steps, run


# Optimiser


def test_learning_rate_is_scaled_by_the_images_of_a_step():
    model = tiny(lr=None, base_lr=0.05, backbone_lr_factor=0.1)
    _, run = fit(model, accumulate_grad_batches=2)
    groups = {group["name"]: group for group in run.optimizers[0].param_groups}
    assert groups["other"]["lr"] == pytest.approx(0.05 * 8 / 256)
    assert groups["backbone"]["lr"] == pytest.approx(0.1 * 0.05 * 8 / 256)
    assert groups["other"]["momentum"] == 0.9
    assert groups["other"]["weight_decay"] == 1e-4
    assert set(groups["backbone"]["params"]) == set(model.encoder.backbone.parameters())
    together = groups["backbone"]["params"] + groups["other"]["params"]
    assert len(together) == len(set(together))
    assert set(together) == set(model.parameters())


def test_learning_rate_as_given():
    _, run = fit(tiny(lr=0.02))
    assert {group["lr"] for group in run.optimizers[0].param_groups} == {0.02}


class Batches:
    """A training loader that is nothing but an iterable."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([batch(4), batch(4)])


def test_loader_without_a_batch_size():
    with pytest.raises(ValueError, match=r"\(Batches\) does not state; give lr instead"):
        fit(tiny(lr=None), loader=Batches())
    assert len(fit(tiny(lr=0.1), loader=Batches())[0]) == 2


def test_cosine_schedule():
    model = tiny(lr=0.1, schedule="cosine", backbone_lr_factor=0.5)
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            rates.append([group["lr"] for group in optimizer.param_groups])

    trainer(callbacks=[Rates()], max_epochs=2).fit(model, DataLoader(items(), batch_size=4))
    cosines = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates == [pytest.approx([0.1 * c, 0.05 * c]) for c in cosines]
    with pytest.raises(ValueError, match="cosine schedule needs an end"):
        fit(tiny(schedule="cosine", region_start=0), max_epochs=-1)


def rates_of(model, **options):
    """Learning rates of the groups, by name, at each step."""
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    trainer(callbacks=[Rates()], **options).fit(model, DataLoader(items(), batch_size=2))
    return rates


def test_warm_up_then_cosine():
    model = tiny(lr=0.1, schedule="cosine", warmup_epochs=0.5, backbone_lr_factor=0.5)
    rates = rates_of(model, max_epochs=2)  # of 4 steps each
    cosines = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    expected = [0.5, 1.0, *cosines]
    assert [r["other"] for r in rates] == pytest.approx([0.1 * e for e in expected])
    assert [r["backbone"] for r in rates] == pytest.approx([0.05 * e for e in expected])
    # Steps, not batches: 8 batches are 4 steps here, of which one epoch has 2.
    model = tiny(lr=0.1, warmup_epochs=1)
    rates = rates_of(model, max_epochs=2, accumulate_grad_batches=2)
    assert [r["other"] for r in rates] == pytest.approx([0.05, 0.1, 0.1, 0.1])


def test_warm_up_without_end():
    with pytest.raises(ValueError, match=r"rise for 2 epochs, .* no more than 4 steps"):
        rates_of(tiny(lr=0.1, warmup_epochs=2), max_epochs=1)


def test_frozen_backbone_is_not_optimised():
    model = tiny(backbone_lr_factor=0.0)
    before = {k: v.clone() for k, v in model.encoder.backbone.state_dict().items()}
    _, run = fit(model)
    assert [group["name"] for group in run.optimizers[0].param_groups] == ["other"]
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.backbone.state_dict().items())


def test_a_frozen_backbone_is_folded_while_it_trains():
    model = tiny(backbone_lr_factor=0.0, lr=0.1)
    norms = [m for m in model.encoder.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    state = copy.deepcopy(model.encoder.backbone.state_dict())
    called = []
    for norm in norms:
        norm.register_forward_hook(lambda *_: called.append(1))
    model.encoder(batch(4)["view1"])
    assert len(called) == len(norms)
    called.clear()
    before_training = model.encoder.fold

    def folded():
        before_training()
        called.clear()  # of finding out which are folded

    model.encoder.fold = folded
    fit(model)
    assert not called
    assert all(
        torch.equal(value, state[name])
        for name, value in model.encoder.backbone.state_dict().items()
    )
    model.eval()
    model.encoder(batch(4)["view1"])
    assert len(called) == len(norms)


# RegionSim's start


@pytest.mark.parametrize(
    ("start", "options", "expected"),
    [
        (2, {"max_epochs": 4}, [False, False, True, True]),
        (0.5, {"max_epochs": 4}, [False, False, True, True]),
        (0.6, {"max_epochs": 3}, [False, False, True]),
        (0.5, {"max_epochs": 1, "steps": 4}, [False, False, True, True]),
        (0.5, {"max_epochs": -1, "max_steps": 4}, [False, False, True, True]),
        (0.0, {"max_epochs": 1}, [True]),
    ],
)
def test_region_starts_on_time(start, options, expected):
    options = dict(options)
    loader = DataLoader(items(4 * options.pop("steps", 1)), batch_size=4)
    steps, _ = fit(tiny(region_start=start), loader=loader, **options)
    # A value once logged stays in the trainer's metrics; before the start there is none.
    assert ["region" in step for step in steps] == expected


def test_region_that_would_never_start():
    with pytest.raises(
        ValueError, match="start at epoch 2, but the training has only epochs 0 to 1"
    ):
        fit(tiny(region_start=2), max_epochs=2)
    with pytest.raises(ValueError, match="start at epoch 1, but the training has only epochs 0 to"):
        fit(tiny(region_start=1), max_epochs=1)
    fit(tiny(region_start=3, region_weight=0.0), max_epochs=1)
    with pytest.raises(ValueError, match="share of the training, which has no end"):
        fit(tiny(region_start=0.5), max_epochs=-1)


def test_region_whose_share_leaves_no_step():
    # Two batches an epoch: of 4 steps, numbers 0 to 3, none is left after 0.8 of them.
    with pytest.raises(ValueError, match=r"start after 0.8 of the training, .* only 4 steps"):
        fit(tiny(region_start=0.8), max_epochs=2)
    losses, _ = fit(tiny(region_start=0.75), max_epochs=2)
    assert ["region" in step for step in losses] == [False, False, False, True]


# Learning, repeating, resuming


def test_training_learns_the_colours_of_scenes():
    torch.manual_seed(0)
    model = tiny(num_classes=4, lr=0.3)
    steps, run = fit(model, loader=DataLoader(apart(scenes()), batch_size=8), max_epochs=40)
    for name, share in {"loss": 0.7, "sim": 0.7, "pseudo_label": 0.6, "region": 0.1}.items():
        assert steps[-1][name] < share * steps[0][name], name
    assert run.callback_metrics["train/agreement"] > 0.8  # from 0.3 at the start
    assert run.callback_metrics["train/usage_perplexity"] > 3.5  # without giving up a category


def seeded(**options):
    torch.manual_seed(3)
    return tiny(
        region_start=3, schedule="cosine", backbone_lr_factor=0.5, normalize_stages=True, **options
    )


def test_same_seed_same_losses():
    assert fit(seeded(), max_epochs=4)[0] == fit(seeded(), max_epochs=4)[0]


def test_resumed_training_goes_on_as_if_never_stopped(tmp_path):
    whole, _ = fit(seeded(), max_epochs=4)

    class Interrupt(Callback):
        def on_train_epoch_end(self, trainer, model):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")
            trainer.should_stop = trainer.current_epoch == 1

    before = Losses()
    trainer(tmp_path, callbacks=[before, Interrupt()], max_epochs=4).fit(
        seeded(), DataLoader(items(), batch_size=4)
    )
    torch.manual_seed(99)  # nothing may hang on what the new process starts from
    after, _ = fit(
        tiny(region_start=3, schedule="cosine", backbone_lr_factor=0.5, normalize_stages=True),
        ckpt_path=tmp_path / "1.ckpt",
        max_epochs=4,
    )
    assert len(after) == 4
    assert before.steps + after == whole


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(5)
    model = tiny()
    _, run = fit(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    return model, tmp_path / "model.ckpt"


def test_checkpoint_brings_back_the_model(checkpoint):
    model, path = checkpoint
    loaded = DenseSiamSegmentation.load_from_checkpoint(path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.segment(images), model.segment(images))
    assert loaded.hparams == model.hparams
    # Defaults are recorded too, so they may change without changing old models.
    assert loaded.hparams["strides"] == (4, 8)
    assert loaded.hparams["tau"] == 0.1
    assert loaded.hparams["weight_decay"] == 1e-4
    # Plain values only: the file can be read without trusting it.
    torch.load(path, weights_only=True)


def test_checkpoint_does_not_need_the_weights_it_started_from(tmp_path):
    start = tmp_path / "start.pth"
    torch.save(tiny().encoder.backbone.state_dict(), start)
    model = tiny(weights=str(start))
    _, run = fit(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    start.unlink()
    loaded = DenseSiamSegmentation.load_from_checkpoint(tmp_path / "model.ckpt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.segment(images), model.segment(images))


def test_checkpoint_of_another_model_says_what_differs(checkpoint):
    _, path = checkpoint
    with pytest.raises(ValueError, match=r"does not fit this DenseSiamSegmentation") as error:
        DenseSiamSegmentation.load_from_checkpoint(path, num_classes=7)
    assert "projector.6.weight (5, 16, 1, 1) there, (7, 16, 1, 1) here" in str(error.value)
    with pytest.raises(
        ValueError, match=r"encoder: not in the checkpoint: \d+ \(encoder\.backbone\.layer3"
    ):
        fit(tiny(strides=(4, 8, 16)), ckpt_path=path, max_epochs=2)
    with pytest.raises(ValueError, match=r"region: only in the checkpoint"):
        DenseSiamSegmentation.load_from_checkpoint(path, region_weight=0.0)


# Validation


def labelled(count):
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randn(3, 32, 32, generator=generator),
            "label": torch.randint(0, 3, (32, 32), generator=generator),
        }
        for _ in range(count)
    ]


def test_validation_scores_the_segmentation():
    model = tiny()
    model.evaluator = ClusterMetrics(num_clusters=5, num_classes=3)
    for count in (3, 1):  # the second time from zero: nothing of the first is left
        loader = DataLoader(labelled(count), batch_size=2)
        (result,) = trainer().validate(model, loader, verbose=False)
        metrics = ClusterMetrics(num_clusters=5, num_classes=3)
        for sample in labelled(count):
            metrics.update(model.segment(sample["image"][None]), sample["label"][None])
        expected = metrics.compute()
        assert result["val/miou"] == pytest.approx(expected["miou"].item())
        assert result["val/accuracy"] == pytest.approx(expected["accuracy"].item())
    # Scores are no part of the model.
    assert not any("confusion" in name for name in model.state_dict())


def test_validation_needs_an_evaluator():
    with pytest.raises(ValueError, match=r"set the model's evaluator.*num_clusters=5"):
        trainer().validate(tiny(), DataLoader(labelled(2), batch_size=2), verbose=False)


# The command line


def test_configuration_in_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text(
        """
        model:
          num_classes: 5
          aux_classes: 12
          hidden_channels: 16
          region_start: 0.5
          backbone: test_resnet
          strides: [4, 8]
          channels: 16
          lr: 0.05
        trainer:
          accelerator: cpu
          max_epochs: 2
          logger: false
          enable_checkpointing: false
          enable_progress_bar: false
          enable_model_summary: false
        """
    )
    cli = LightningCLI(
        DenseSiamSegmentation,
        L.LightningDataModule,
        run=False,
        save_config_callback=None,
        args=["--config", str(tmp_path / "config.yaml"), "--model.tau", "0.2"],
    )
    assert cli.model.num_classes == 5
    assert cli.model.encoder.strides == (4, 8)
    assert cli.model.region_start.start == 0.5
    assert cli.model.region.tau == 0.2
    cli.trainer.fit(cli.model, DataLoader(items(), batch_size=4))
    cli.trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = DenseSiamSegmentation.load_from_checkpoint(tmp_path / "model.ckpt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.segment(images), cli.model.segment(images))


# Several processes


def halves():
    """A model, and features and logits of 8 images whose halves use the categories differently."""
    torch.manual_seed(11)
    model = tiny(rebalance="inverse", aux_classes=None, sim_weight=0.0, region_weight=0.0)
    features, z = torch.randn(2, 8, 16, 4, 4), torch.randn(2, 8, 5, 4, 4)
    z[:, :4, 0] += 2
    return model, features, z


def loss_of_half(rank):
    model, features, z = halves()
    half = slice(4 * rank, 4 * rank + 4)
    return model.category_losses(*features[:, half], *z[:, half], torch.ones(4))["pseudo_label"]


def join(store, rank):
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)


def other_process(_, store, result):
    join(store, rank=1)
    torch.save(loss_of_half(1), result)
    dist.destroy_process_group()


def test_pseudo_labels_are_counted_over_all_processes(tmp_path):
    store, result = str(tmp_path / "store"), str(tmp_path / "loss")
    process = mp.start_processes(
        other_process, (store, result), nprocs=1, join=False, start_method="spawn"
    )
    join(store, rank=0)
    try:
        mine = loss_of_half(0)
        while not process.join():
            pass
    finally:
        dist.destroy_process_group()
    model, features, z = halves()
    whole = model.category_losses(*features, *z, torch.ones(8))["pseudo_label"]
    assert_close((mine + torch.load(result)) / 2, whole, terms=z[0].numel(), rms=3)
    # Each by itself would count otherwise.
    assert (loss_of_half(0) / mine - 1).abs() > 1e-2
