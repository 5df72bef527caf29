"""What earlier versions wrote still loads, and their trainings still take the same course."""

import json

import pytest
import torch

from densesiam import cli
from tests.tolerance import assert_within, terms_of, tolerance
from tests.training.earlier.commands import COMMANDS, HERE, checkpoint, prepare
from tests.training.earlier.losses import METHODS, NUDGE, train
from tests.transfer.support import results

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*self.trainer.* reference is not registered"),
]

SUPERVISED = [command for command in COMMANDS if " " in command]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "transfer detection"])
def test_a_kept_checkpoint_is_trained_on(command, tmp_path):
    kept = torch.load(checkpoint(command), weights_only=True)
    longer = "--model.max_steps=4" if command in SUPERVISED else "--trainer.max_epochs=2"
    args = [*prepare(command, tmp_path), longer, "--ckpt_path", str(checkpoint(command))]
    assert cli.main(args) == 0
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 4 == 2 * kept["global_step"]
    assert content["state_dict"].keys() == kept["state_dict"].keys()
    # The epochs before are those of the kept run, and not trained again.
    epochs = json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"]
    before = next(v for k, v in kept["callbacks"].items() if k.startswith("RunReport"))["epochs"]
    assert epochs[: len(before)] == [{**e, "epoch": e["epoch"] + 1} for e in before]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, len(epochs) + 1))
    assert len(epochs) > len(before)


@pytest.mark.parametrize("command", SUPERVISED)
def test_a_kept_checkpoint_is_scored(command, tmp_path):
    args = ["--ckpt_path", str(checkpoint(command)), "--evaluate", "true"]
    assert cli.main([*prepare(command, tmp_path), *args]) == 0
    assert results(tmp_path / "run")["step"] == (1 if command == "transfer detection" else 2)


@pytest.mark.parametrize("command", ["fit", "picie"])
def test_a_kept_checkpoint_segments(command, tmp_path):
    prepare(command, tmp_path)
    args = [str(checkpoint(command)), str(tmp_path / "photos"), "--accelerator", "cpu"]
    assert cli.main(["predict", *args, "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 8


@pytest.mark.parametrize("command", ["fit", "pretrain", "picie"])
def test_a_kept_checkpoint_is_fine_tuned(command, tmp_path):
    args = ["--model.weights", str(checkpoint(command)), "--model.lr", "1e-12"]
    assert cli.main([*prepare("transfer segmentation", tmp_path), *args]) == 0
    kept = torch.load(checkpoint(command), weights_only=True)["state_dict"]
    found = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    learned = [k for k in kept if k.startswith("encoder.backbone.") and k.endswith("conv.weight")]
    assert learned
    for name in learned:
        assert torch.equal(found["state_dict"][name], kept[name])


@pytest.mark.parametrize("name", METHODS)
def test_losses_stay(name, tmp_path):
    kept = json.loads((HERE / "losses.json").read_text())[name]
    expected, twin = (torch.tensor(kept[key], dtype=torch.float64) for key in ("losses", "twin"))
    model, losses = train(name, tmp_path)
    # A step rounds as `terms_of` counts, forward and backward. Its error then grows with training,
    # as that of the twin did, which began with weights that were off by NUDGE.
    steps = torch.arange(1, len(expected) + 1)
    growth = ((twin - expected).abs() / NUDGE).cummax(0).values + expected.abs()
    allowed = tolerance(2 * terms_of(model) * steps, growth, torch.float64)
    assert_within(torch.tensor(losses, dtype=torch.float64), expected, allowed, name)
    assert float((allowed / expected.abs()).max()) < 1e-6  # or it would say nothing
