"""The command pretrain, its configurations, and several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from densesiam import cli
from densesiam.data import ImageNetImages
from densesiam.methods import DenseSiamPretraining
from densesiam.models import Encoder
from tests import PATIENCE
from tests.cli.support import parse, save_config, save_photos
from tests.tolerance import assert_within, tolerance

ROOT = Path(cli.__file__).parents[2]


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos")


@pytest.fixture
def config(tmp_path, photos):
    return save_config(tmp_path, photos)


def tensors(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def epochs(run):
    return [
        {name: value for name, value in epoch.items() if name.startswith("train/")}
        for epoch in json.loads((run / "summary.json").read_text())["epochs"]
    ]


def test_pretrain_and_going_on(config, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["pretrain", "--config", str(config)]) == 0
    said = capsys.readouterr()
    assert "epoch 1/2  loss" in said.out
    assert "region" in said.out.split("epoch 2/2")[1]
    assert "warning" not in said.err
    assert {p.name for p in run.iterdir()} == {"config.yaml", "summary.json", "logs", "checkpoints"}
    first, second = epochs(run)
    assert "train/region" not in first
    assert {"train/sim", "train/dense", "train/region"} < set(second)
    model = DenseSiamPretraining.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    last = str(run / "checkpoints" / "last.ckpt")
    # The checkpoint is a file of weights like any other.
    encoder = Encoder("test_resnet", weights=last, strides=(8,), fpn=False).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(images), model.eval().encoder(images))
    assert cli.main(["predict", last, "samples", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "is not a segmentation model's checkpoint, but a pre-training model's" in said

    # Stopped after an epoch and gone on with, it is the same training: the rate is fixed, and
    # RegionSim's start an epoch, so a shorter training is the beginning of a longer one.
    part = tmp_path / "part"
    again = ["pretrain", "--config", str(config), "--output", str(part)]
    early = ["--model.region_start", "0"]
    assert cli.main([*again, *early, "--trainer.max_epochs", "1"]) == 0
    assert cli.main([*again, *early, "--ckpt_path", "last"]) == 0
    whole = tmp_path / "whole"
    again[-1] = str(whole)
    assert cli.main([*again, *early]) == 0
    assert epochs(part) == epochs(whole)
    assert all(torch.equal(tensor, tensors(part)[name]) for name, tensor in tensors(whole).items())


def test_two_processes_train_as_one(config, tmp_path):
    """Under torchrun, on halves of the same batches, with normalisation over all of a batch."""
    # In float32 a ReLU may switch between the two sums of the same numbers: 2e-3 was seen.
    double = ["--trainer.precision", "64-true"]
    command = ["pretrain", "--config", str(config), *double]
    assert cli.main([*command, "--output", str(tmp_path / "one")]) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module"]
    more = ["--output", str(tmp_path / "two"), "--trainer.devices", "2", "--data.batch_size", "2"]
    result = subprocess.run(
        [sys.executable, *launch, "tests.cli.two_ranks", *command, *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 2/2") == 1  # only the first process speaks
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # Four steps: normalisation enlarges float64's rounding a hundred thousand times at the
        # most. By each process's own images it makes a difference of 1 and more.
        assert_within(two[name], tensor, tolerance(1e10, 1, torch.float64), name)


# PiCIE


def test_picie_trains_scores_and_segments(photos, tmp_path, capsys):
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in photos.iterdir():
        Image.fromarray(np.eye(88, 80, dtype=np.uint8)).save(labels / path.name)
    content = {
        "output": str(tmp_path / "run"),
        "model": {
            "num_classes": 3,
            "backbone": "test_resnet",
            "strides": [8],
            "channels": 8,
            "lr": 0.05,
        },
        "data": {
            "train": str(photos),
            "views": {
                "class_path": "SegmentationViews",
                "init_args": {"size": 32, "resize": 32, "crop": None},
            },
            "val": {
                "class_path": "LabelledImages",
                "init_args": {
                    "images": str(photos),
                    "labels": str(labels),
                    "classes": {"names": ["off", "on"]},
                },
            },
            "batch_size": 4,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    path = tmp_path / "picie.yaml"
    path.write_text(yaml.safe_dump(content))
    assert cli.main(["picie", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.index("before training:") < said.index("within") < said.index("after training:")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {"best.ckpt", "last.ckpt"} <= {p.name for p in checkpoints.iterdir()}
    out = tmp_path / "out"
    last = str(checkpoints / "last.ckpt")
    assert cli.main(["predict", last, str(photos), "--output", str(out)]) == 0
    assert Image.open(out / "labels" / "3.png").size == (80, 88)
    score = ["picie", "--config", str(path), "--ckpt_path", "last", "--evaluate", "true"]
    trained = (checkpoints / "last.ckpt").read_bytes()
    capsys.readouterr()
    assert cli.main(score) == 0
    table = said.split("after training:\n")[1].split("finished")[0]
    assert capsys.readouterr().out.split("wrote")[0] == table
    assert (tmp_path / "run" / "validation" / "report.html").is_file()
    assert (checkpoints / "last.ckpt").read_bytes() == trained
    assert cli.main([*score, "--head", "aux"]) == 1
    assert "it is PiCIE" in capsys.readouterr().err
    more = ["--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert cli.main(["picie", "--config", str(path), *more]) == 0


# Data


def test_imagenet_layout(tmp_path):
    for name in ("train/n01440764/a.JPEG", "train/n01443537/b.JPEG", "val/n01440764/c.JPEG"):
        path = tmp_path / "imagenet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    found = ImageNetImages(tmp_path / "imagenet").paths
    assert [path.name for path in found] == ["a.JPEG", "b.JPEG"]
    with pytest.raises(FileNotFoundError, match=r"imagenet: give that as `root`[\s\S]*n01440764"):
        ImageNetImages(tmp_path / "imagenet" / "val")


# Configurations


PRETRAIN = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))
ON_TOP = ("coco_r50", "voc_r50", "simsiam")  # of imagenet_r50.yaml


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path, monkeypatch):
    monkeypatch.chdir("/")
    base = [path.with_name("imagenet_r50.yaml")] if path.stem in ON_TOP else []
    config = parse("pretrain", *base, path)
    assert config.model.weights is None, "from scratch"
    if path.stem == "simsiam":
        assert config.model.lambda1 == config.model.lambda2 == 0
    if path.stem in ("imagenet_r50", *ON_TOP):
        assert config.model.backbone == "resnet50"
        assert config.data.train.class_path.startswith("densesiam.data.")


def test_picie_config_is_valid(monkeypatch):
    monkeypatch.chdir("/")
    config = parse("picie", ROOT / "configs" / "segmentation" / "picie.yaml")
    dense = parse("fit", ROOT / "configs" / "segmentation" / "coco27_r18.yaml")
    # The same data, encoder and number of categories, so that the two compare.
    assert config.data == dense.data
    for name in ("backbone", "weights", "strides", "channels", "num_classes", "base_lr"):
        assert config.model[name] == dense.model[name]
