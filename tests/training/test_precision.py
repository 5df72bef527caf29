"""Trainings and predictions in bfloat16: where it is chosen, what is kept, what is told."""

import json
import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image

from densesiam import cli
from densesiam.methods import DenseSiamPretraining, DenseSiamSegmentation, PiCIE
from densesiam.training import precision
from densesiam.training.checkpoints import CheckpointConfig, read_file
from densesiam.training.divergence import DivergenceError, Finite
from densesiam.training.options import TrainerOptions, build_trainer
from densesiam.training.precision import describe, has_bfloat16, settled
from densesiam.transfer.base import Supervised
from tests.cli.predicting import save_photo, save_segmenter
from tests.methods.support import tiny
from tests.training.earlier.commands import prepare
from tests.training.support import LONGER, Break, command, fit
from tests.transfer.support import error, same, tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
FLAGS = Path("/proc/cpuinfo")


@pytest.fixture
def has(monkeypatch):
    """Say whether the device has bfloat16; at first it has."""

    def say(there):
        monkeypatch.setattr(precision, "has_bfloat16", lambda device: there)

    say(True)
    return say


@pytest.fixture(scope="session")
def of_the_kernel():
    """What the operating system says of the processor."""
    if platform.machine() != "x86_64" or not FLAGS.is_file():
        pytest.skip("the flags are those of Linux on x86")
    return set(FLAGS.read_text().split())


def test_the_processor_is_asked(of_the_kernel, monkeypatch):
    monkeypatch.undo()  # of what lets all processors see the same tests
    assert has_bfloat16("cpu") == bool(of_the_kernel & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize("newer", [True, False])
def test_the_gpu_is_asked_for_what_it_does_not_emulate(newer, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: newer)
    assert has_bfloat16("cuda") == newer


def of(before):
    """A checkpoint of a run with these settings of the trainer."""
    return {CheckpointConfig.KEY: yaml.safe_dump({"trainer": before})}


@pytest.mark.parametrize(
    ("there", "tried", "checkpoint", "expected"),
    [
        (True, True, None, "bf16-mixed"),
        (True, False, None, "32-true"),
        (False, True, None, "32-true"),
        (True, True, of({"precision": "32-true"}), "32-true"),
        (False, True, of({"precision": "bf16-mixed"}), "bf16-mixed"),
        (False, False, of({"precision": "64-true"}), "64-true"),
        (True, True, {}, "bf16-mixed"),
    ],
)
def test_what_auto_comes_to(there, tried, checkpoint, expected, has):
    has(there)
    model = SimpleNamespace(learns_in_bfloat16=tried)
    assert settled(TrainerOptions(accelerator="cpu"), model, checkpoint).precision == expected
    for word in ("32-true", "bf16-mixed"):
        assert settled(TrainerOptions(precision=word), model, checkpoint).precision == word


def test_what_was_tried_and_lost_nothing():
    """By studies/transfer and studies/camvid, see docs/training.md."""
    for tried in (DenseSiamPretraining, DenseSiamSegmentation):
        assert tried.learns_in_bfloat16
    for other in (PiCIE, Supervised):
        assert not other.learns_in_bfloat16


def test_the_log_says_why(has):
    half = TrainerOptions(accelerator="cpu", precision="bf16-mixed")
    assert describe(half) == (
        "precision: bf16-mixed: the processor has bfloat16; --trainer.precision 32-true computes "
        "in float32"
    )
    has(False)
    assert "the processor has no instructions for: 32-true would be quicker" in describe(half)
    assert describe(TrainerOptions(precision="32-true")) == "precision: 32-true"


def test_a_trainer_alone_is_in_float32(has):
    assert build_trainer(TrainerOptions(accelerator="cpu"), [], logger=False).precision == "32-true"


@pytest.mark.parametrize("name", ["fit", "pretrain"])
def test_a_run_keeps_what_it_began_with(name, has, tmp_path, capsys):
    """On another machine too: the very losses of a run that was not stopped."""
    args = command(name, tmp_path)
    longer = [*args, "--model.schedule", "fixed"]
    assert cli.main([*longer, "--output", str(tmp_path / "whole")]) == 0
    assert "precision: bf16-mixed: the processor has bfloat16" in capsys.readouterr().out
    settings = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert settings["trainer"]["precision"] == "bf16-mixed"

    assert cli.main([*longer, "--trainer.max_epochs", "1"]) == 0
    has(False)
    assert cli.main(longer) == 0
    assert "bf16-mixed, which the processor has no instructions for" in capsys.readouterr().out
    run = json.loads((tmp_path / "run" / "summary.json").read_text())
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert run["precision"] == whole["precision"] == "bf16-mixed"
    assert [e["train/loss"] for e in run["epochs"]] == [e["train/loss"] for e in whole["epochs"]]
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))

    # Another precision is said, or refused.
    said = error(capsys, *longer, "--trainer.max_epochs", "4", "--trainer.precision", "32-true")
    assert "trainer.precision: bf16-mixed -> 32-true" in said
    assert "--change_settings true" in said


@pytest.mark.parametrize("name", ["fit", "picie", "pretrain", "transfer segmentation"])
def test_weights_and_optimiser_stay_float32(name, tmp_path):
    args = [*prepare(name, tmp_path), *LONGER[name], "--trainer.precision", "bf16-mixed"]
    assert cli.main(args) == 0
    checkpoint = read_file(tmp_path / "run" / "checkpoints" / "last.ckpt", "")
    state = [
        value
        for optimizer in checkpoint["optimizer_states"]
        for entry in optimizer["state"].values()
        for value in entry.values()
        if torch.is_tensor(value)
    ]
    assert state
    kinds = {tensor.dtype for tensor in [*checkpoint["state_dict"].values(), *state]}
    assert kinds <= {torch.float32, torch.int64}


@pytest.mark.parametrize("how", ["input", "weight", "gradient"])
def test_divergence_is_noticed(how):
    with pytest.raises(DivergenceError, match="no longer finite at step ") as caught:
        fit(tiny(), [Break(5, how), Finite(8)], steps=40, precision="bf16-mixed")
    assert "in precision bf16-mixed" in str(caught.value)
    assert 'try trainer.precision "32-true"' in str(caught.value)


class Losses(Callback):
    """Every step's loss, and the weights after the last."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, model, outputs, *_):
        self.seen.append(outputs["loss"].item())


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [("test_vit", [16]), ("test_convnext", [8, 16]), ("test_efficientnet", [8, 16])],
)
def test_backbones_learn(backbone, strides):
    """The first loss is float32's but for rounding; after some steps it has fallen in both."""
    first, last = {}, {}
    for word in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        losses = Losses()
        model = tiny(backbone=backbone, strides=strides, normalize_stages=True)
        fit(model, [losses, Finite(8)], steps=24, precision=word)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        first[word] = losses.seen[0]
        last[word] = np.mean(losses.seen[-4:])
        assert last[word] < np.mean(losses.seen[:4])
    assert first["32-true"] != first["bf16-mixed"]
    # Each of some thirty layers rounds its results to 8 bits; the losses are means over them.
    eps = torch.finfo(torch.bfloat16).eps
    assert abs(first["bf16-mixed"] - first["32-true"]) < 30 * eps


def labels(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted((folder / "labels").glob("*.png"))])


def test_predictions_say_and_keep_their_precision(has, tmp_path, capsys):
    checkpoint = save_segmenter(tmp_path / "last.ckpt")
    for i in range(3):
        save_photo(tmp_path / "photos" / f"{i}.png", seed=i)

    def predict(output, *more):
        folder = tmp_path / output
        args = [
            "predict",
            str(checkpoint),
            str(tmp_path / "photos"),
            "--output",
            str(folder),
            *more,
        ]
        return cli.main(args), capsys.readouterr().err, folder

    def said(folder):
        return json.loads((folder / "summary.json").read_text())["protocol"]["precision"]

    float32 = ["--precision", "32-true"]
    assert said(predict("half")[2]) == "bf16-mixed"
    assert said(predict("float", *float32)[2]) == "32-true"
    # Some pixels lie between two categories; other networks than these agree far better.
    agree = labels(tmp_path / "half") == labels(tmp_path / "float")
    assert 0.9 < agree.mean() < 1

    # On a machine without it, what is new is done as the rest was.
    has(False)
    save_photo(tmp_path / "photos" / "3.png", seed=3)
    for name, expected in (("half", "bf16-mixed"), ("float", "32-true")):
        assert predict(name)[0] == 0
        assert said(tmp_path / name) == expected
    code, err, _ = predict("half", *float32)
    assert code == 1
    assert "precision was bf16-mixed, and is 32-true" in err
    assert said(predict("new")[2]) == "32-true"
