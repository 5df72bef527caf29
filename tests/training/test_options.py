"""The trainer that all commands share."""

import timm
import torch

from densesiam.training.options import TimmSyncBatchNorm, TrainerOptions, build_trainer
from tests.tolerance import assert_close, terms_of


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


def test_the_trainer_synchronises_so():
    settings = {"accelerator": "cpu", "devices": 2}
    for wanted in (True, False):
        options = TrainerOptions(**settings, sync_batchnorm=wanted)
        trainer = build_trainer(options, [], logger=False)
        assert isinstance(trainer.strategy._layer_sync, TimmSyncBatchNorm) == wanted
