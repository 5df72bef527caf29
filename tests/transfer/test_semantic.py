"""Fine-tuning for semantic segmentation, called as a user would."""

import json

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from densesiam import cli
from densesiam.transfer.semantic import FCNHead, SegmentationTransfer
from tests.tolerance import assert_close
from tests.transfer.support import error, results, same, save_labelled, tensors, write

MODEL = {
    "backbone": "test_resnet",
    "strides": [4, 8],
    "output_stride": 32,
    "fpn": True,
    "fpn_channels": 16,
    "head": "linear",
    "lr": 0.1,
    "max_steps": 4,
}


@pytest.fixture
def config(tmp_path):
    data = {"train": save_labelled(tmp_path / "train"), "val": save_labelled(tmp_path / "val", 3)}
    return write(
        tmp_path / "tiny.yaml",
        output=str(tmp_path / "run"),
        model=MODEL,
        data={**data, "size": 48, "scale": [0.8, 1.2], "batch_size": 2},
        trainer={
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "validate_every_n_epochs": 10,
        },
    )


def test_learns_and_leaves_scores_and_a_checkpoint(config, tmp_path, capsys):
    args = ["transfer", "segmentation", "--config", str(config)]
    assert cli.main([*args, "--model.max_steps", "40"]) == 0
    said = capsys.readouterr().out
    assert "miou" in said
    scores = results(tmp_path / "run")["scores"]
    # Two flat colours on grey: near-perfect when right. Ground alone scores 0.29.
    assert scores["miou"] > 0.6
    assert set(scores) == {"miou", "accuracy", "iou/ground", "iou/square", "iou/disc"}
    assert results(tmp_path / "run")["step"] == 40
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "finished"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()

    # Scoring the checkpoint alone gives the same scores.
    again = ["--evaluate", "true", "--output", str(tmp_path / "again")]
    checkpoint = ["--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")]
    assert cli.main([*args, *again, *checkpoint]) == 0
    assert results(tmp_path / "again")["scores"] == scores


def test_a_resumed_run_ends_as_if_it_had_not_stopped(config, tmp_path):
    args = ["transfer", "segmentation", "--config", str(config)]
    assert cli.main([*args, "--model.milestones", "[3]"]) == 0
    whole = tensors(tmp_path / "run")

    half = [*args, "--model.milestones", "[3]", "--output", str(tmp_path / "half")]
    assert cli.main([*half, "--model.max_steps", "2"]) == 0
    assert not same(tensors(tmp_path / "half"), whole)
    assert cli.main([*half, "--ckpt_path", "last"]) == 0
    assert same(tensors(tmp_path / "half"), whole)


def test_starts_from_a_pretrained_checkpoint(config, tmp_path):
    source = SegmentationTransfer(["a", "b"], backbone="test_resnet", strides=(4, 8), fpn=True)
    state = {f"encoder.backbone.{k}": v for k, v in source.encoder.backbone.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.ckpt")
    args = ["transfer", "segmentation", "--config", str(config), "--model.max_steps", "1"]
    weights = ["--model.weights", str(tmp_path / "weights.ckpt"), "--model.lr", "1e-12"]
    assert cli.main([*args, *weights]) == 0
    trained = tensors(tmp_path / "run")
    key = "encoder.backbone.conv1.0.weight"
    assert_close(trained[key], state[key], terms=1)  # one step at a rate of 1e-12


def test_fcn_head_is_as_published():
    head = FCNHead(8, 5)
    convolutions = [layer for layer in head if isinstance(layer, torch.nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(3, 3), (3, 3), (1, 1)]
    assert [c.dilation for c in convolutions] == [(6, 6), (6, 6), (1, 1)]
    assert head(torch.randn(2, 8, 7, 9)).shape == (2, 5, 7, 9)


def test_the_default_network_has_stride_16():
    model = SegmentationTransfer(["a", "b"], backbone="test_resnet")
    assert model.eval()(torch.randn(1, 3, 64, 96)).shape == (1, 2, 4, 6)


def test_loss_passes_over_void(monkeypatch):
    model = SegmentationTransfer(["a", "b"], backbone="test_resnet", strides=(4,), output_stride=32)
    logits = torch.randn(2, 2, 4, 4)
    model.forward = lambda images: logits
    label = torch.randint(0, 2, (2, 4, 4))
    label[0] = 255
    loss = model.losses({"image": None, "label": label})["segmentation"]
    assert_close(loss, F.cross_entropy(logits[1:], label[1:]), terms=16)
    all_void = {"image": None, "label": torch.full((2, 4, 4), 255)}
    assert model.losses(all_void)["segmentation"] == 0


# Errors


def test_a_finished_run_says_so(config, tmp_path, capsys):
    args = ["transfer", "segmentation", "--config", str(config), "--model.max_steps", "1"]
    assert cli.main(args) == 0
    said = error(capsys, *args, "--ckpt_path", "last")
    assert "has trained 1 steps already" in said
    assert "--evaluate true" in said


def test_a_checkpoint_of_another_command_is_refused(config, tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    said = error(
        capsys, "transfer", "segmentation", "--config", config, "--ckpt_path",
        tmp_path / "other.ckpt",
    )  # fmt: skip
    assert "is not a checkpoint of this command" in said
    assert "model.weights" in said


def test_a_checkpoint_of_other_classes_is_refused(config, tmp_path, capsys):
    args = ["transfer", "segmentation", "--config", str(config), "--model.max_steps", "1"]
    assert cli.main(args) == 0
    content = yaml.safe_load(config.read_text())
    for name in ("train", "val"):
        content["data"][name]["init_args"]["classes"]["names"].append("more")
    other = write(tmp_path / "other.yaml", **content)
    said = error(
        capsys, "transfer", "segmentation", "--config", other, "--output", tmp_path / "new",
        "--ckpt_path", tmp_path / "run" / "checkpoints" / "last.ckpt", "--evaluate", "true",
    )  # fmt: skip
    assert "was trained with other settings or data" in said


def test_missing_labels_are_named(config, tmp_path, capsys):
    (tmp_path / "train" / "labels" / "2.png").unlink()
    said = error(capsys, "transfer", "segmentation", "--config", config)
    assert "images without a label" in said
    assert "2.png" in said


def test_labels_to_score_are_looked_at_before_training(config, tmp_path, capsys):
    for setting, kept in (("upright", (64, 40)), ("stored", (40, 64))):
        photo = tmp_path / "val" / "images" / "1.jpg"
        photo.with_suffix(".png").unlink(missing_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (64, 40)).save(photo, exif=exif)
        label = tmp_path / "val" / "labels" / "1.png"
        Image.new("L", kept).save(label)
        said = error(
            capsys, "transfer", "segmentation", "--config", config, "--data.val.exif", setting
        )
        assert f"label {label} is {kept[0]} x {kept[1]} pixels, but its image {photo}" in said
        assert ("if labels were drawn on the pixels as they are stored" in said) == (
            setting == "upright"
        )
        assert not (tmp_path / "run").exists()


def test_diverged_training_stops(config, capsys):
    said = error(
        capsys, "transfer", "segmentation", "--config", config, "--model.lr", "1e30",
        "--model.max_steps", "40",
    )  # fmt: skip
    assert "no longer finite" in said
    assert "model.lr" in said


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("model.lr", "-1", "lr must be positive"),
        ("model.milestones", "[5,3]", "milestones must be rising"),
        ("model.max_steps", "0", "max_steps must be at least 1"),
        ("data.batch_size", "9", "lower data.batch_size"),
        ("model.shcedule", "cosine", "unknown setting model.shcedule: did you mean model.schedule"),
    ],
)
def test_wrong_settings(config, capsys, setting, value, message):
    capsys.readouterr()
    assert cli.main(["transfer", "segmentation", "--config", str(config), f"--{setting}", value])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", ["trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=1"]
)
def test_training_has_its_steps_however_long_an_epoch_is(config, tmp_path, setting):
    args = ["transfer", "segmentation", "--config", str(config), "--model.max_steps", "3"]
    assert cli.main([*args, f"--{setting}"]) == 0
    assert results(tmp_path / "run")["step"] == 3
