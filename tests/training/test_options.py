"""The trainer that all commands share."""

from types import SimpleNamespace

import pytest
import timm
import torch

from densesiam.training import run
from densesiam.training.options import (
    TimmSyncBatchNorm,
    TrainerOptions,
    build_trainer,
    synchronised,
)
from tests.tolerance import assert_close, terms_of
from tests.training.earlier.commands import prepare
from tests.transfer.support import error


@torch.no_grad()
def test_synchronised_normalisation_keeps_activations():
    torch.manual_seed(0)
    network = timm.create_model("efficientnet_lite0", features_only=True, out_indices=(1,)).eval()
    images = torch.randn(2, 3, 32, 32)
    (expected,) = network(images)
    plugin = TimmSyncBatchNorm()
    synchronised = plugin.apply(network)
    kinds = {type(module).__name__ for module in synchronised.modules()}
    assert "SyncBatchNormAct" in kinds
    assert "BatchNormAct2d" not in kinds
    # In evaluation it needs no other process.
    assert_close(synchronised(images)[0], expected, terms_of(synchronised))
    alone = plugin.revert(synchronised)
    assert "SyncBatchNormAct" not in {type(module).__name__ for module in alone.modules()}
    assert_close(alone(images)[0], expected, terms_of(alone))


@pytest.mark.parametrize("there", [True, False])
def test_the_device_decides_on_normalisation(there, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert synchronised(TrainerOptions()) == there
    assert not synchronised(TrainerOptions(accelerator="cpu"))
    assert synchronised(TrainerOptions(accelerator="cpu", sync_batchnorm=True))
    assert not synchronised(TrainerOptions(sync_batchnorm=False))


@pytest.mark.parametrize("command", ["fit", "probe segmentation"])
def test_what_torch_cannot_normalise_is_named(command, tmp_path, capsys):
    args = [*prepare(command, tmp_path), "--trainer.devices", "2", "--trainer.sync_batchnorm"]
    said = error(capsys, *args, "true")
    assert "trainer.sync_batchnorm is true: over 2 processes torch normalises on GPUs only" in said
    assert "Set it to auto or false" in said
    assert not (tmp_path / "run").exists()


def test_normalisation_by_each_process_is_told(capsys):
    built = SimpleNamespace(
        options=TrainerOptions(accelerator="cpu"), data=SimpleNamespace(batch_size=4)
    )
    run._check_normalisation(built, SimpleNamespace(world_size=1))
    assert not capsys.readouterr().out
    run._check_normalisation(built, SimpleNamespace(world_size=2))
    assert "each of 2 processes normalises over its own 4 images" in capsys.readouterr().out


def test_the_trainer_synchronises_so():
    settings = {"accelerator": "cpu", "devices": 2}
    for wanted in (True, False):
        options = TrainerOptions(**settings, sync_batchnorm=wanted)
        trainer = build_trainer(options, [], logger=False)
        assert isinstance(trainer.strategy._layer_sync, TimmSyncBatchNorm) == wanted
