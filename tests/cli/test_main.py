"""The command, called as a user would, with tiny pictures and a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image

import densesiam
from densesiam import cli
from densesiam.cli import fit
from densesiam.cli.registry import build_parsers
from densesiam.data.sets.classes import known_table
from densesiam.training import run as training_run
from densesiam.training.checkpoints import read_checkpoint
from densesiam.training.folders import claim_folder
from densesiam.training.report import RunReport
from densesiam.training.run import default_folder
from tests import PATIENCE
from tests.cli import predicting

ROOT = Path(cli.__file__).parents[2]

MODEL = {**predicting.MODEL, "lr": 0.05, "region_start": 1}


def scene(width, height, seed):
    """Three flat areas with a little noise, and which of them each pixel belongs to."""
    rng = np.random.default_rng(seed)
    label = np.zeros((height, width), dtype=np.uint8)
    label[:, width // 3 :] = 1
    label[height // 2 :, width // 2 :] = 2
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    pixels = colours[label] + rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8)), Image.fromarray(label)


def save_scenes(root, count, labels=False):
    images, truths = root / "images", root / "labels"
    for folder in (images, truths):
        folder.mkdir(parents=True)
    for i in range(count):
        image, label = scene(48 + 8 * i, 40, i)
        image.save(images / f"{i}.png")
        if labels:
            label.save(truths / f"{i}.png")
    return images, truths


@pytest.fixture
def photos(tmp_path):
    return save_scenes(tmp_path / "photos", 4)[0]


@pytest.fixture
def config(tmp_path, photos):
    """A config file of two short epochs on the processor."""
    return write_config(tmp_path / "tiny.yaml", photos)


def write_config(path, photos, **data):
    content = {
        "output": str(path.parent / "run"),
        "model": MODEL,
        "data": {
            "train": str(photos),
            "views": {
                "class_path": "SegmentationViews",
                "init_args": {"size": 32, "resize": 32, "crop": None},
            },
            "predict_transform": {"resize": 40},
            "batch_size": 2,
            **data,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def labelled(root, count=3, **more):
    images, truths = save_scenes(root, count, labels=True)
    init_args = {
        "images": str(images),
        "labels": str(truths),
        "classes": {"names": ["left", "right", "corner"], "things": ["corner"]},
    }
    return {"class_path": "LabelledImages", "init_args": {**init_args, **more}}


def losses(run):
    epochs = json.loads((run / "summary.json").read_text())["epochs"]
    return [
        {name: value for name, value in epoch.items() if name.startswith(("train/", "val/"))}
        for epoch in epochs
    ]


def tensors(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def error(capsys, *args, code=1):
    """Run a command that must fail, and return what it says: one message, no traceback."""
    capsys.readouterr()
    assert cli.main([str(arg) for arg in args]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("densesiam: error: ") == 1
    return said


# Training, and what it leaves


def test_a_run_leaves_config_checkpoint_logs_pictures_and_summary(config, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["fit", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "epoch 1/2  loss" in said
    last = next(line for line in said.splitlines() if line.startswith("epoch 2/2  loss"))
    assert "region" in last
    assert "images/s" in said
    assert str(run / "checkpoints") in said

    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert kept == ["last-previous.ckpt", "last.ckpt"]
    assert any(p.name.startswith("events.out") for p in (run / "logs").iterdir())
    assert (run / "pictures" / "epoch-0002.jpg").is_file()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["state"] == "finished"
    assert [epoch["epoch"] for epoch in summary["epochs"]] == [1, 2]
    assert "train/region" not in summary["epochs"][0]
    assert summary["epochs"][1]["train/region"] > 0

    # The saved config alone gives the same run again, bit for bit.
    again = ["fit", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")]
    assert cli.main(again) == 0
    assert losses(tmp_path / "again") == losses(run)


def test_progress_bar_shows_losses_and_speed(config, monkeypatch, capsys):
    monkeypatch.setattr(training_run, "interactive", lambda: True)
    assert cli.main(["fit", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    bars = [line for line in re.split(r"[\r\n]", said) if " 2/2, " in line and "loss=" in line]
    shown = r"left=0:00:0\d, images/s=\d+, loss=\d\.\d{3}, sim=\d\.\d{3}.*aux=.*region="
    assert re.search(rf"epoch 2/2, batch: 2/2, {shown}", bars[-1])
    assert "epoch 2/2  loss" in said  # the lines of the epochs stand beside the bar


def test_runs_are_named_after_their_config(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.main(["fit", "--config", str(config), "--output", "null"]) == 0
    assert (tmp_path / "outputs" / "tiny" / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "outputs" / "tiny-2" / "checkpoints" / "last.ckpt").is_file()


def test_going_on_needs_no_weights_to_start_from(config, trained, tmp_path):
    weights = tmp_path / "weights.ckpt"
    weights.write_bytes(trained.read_bytes())
    base = ["fit", "--config", str(config), "--model.weights", str(weights)]
    assert cli.main([*base, "--trainer.max_epochs", "2"]) == 0
    weights.unlink()
    again = ["fit", "--config", str(tmp_path / "run" / "config.yaml"), "--ckpt_path", "last"]
    assert cli.main([*again, "--trainer.max_epochs", "3"]) == 0
    assert len(losses(tmp_path / "run")) == 3
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["weights"] == str(weights)


def test_tensorboard_holds_losses_speed_and_pictures(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli.main(["fit", "--config", str(config)]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss_step", "train/loss_epoch", "train/sim_step"} <= set(scalars)
    assert "images_per_second" in scalars
    assert events.Tags()["images"] == ["segmentation"]


def test_seed_decides_the_run(config, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        args = ["--output", str(tmp_path / name), "--seed", str(seed), "--trainer.max_epochs", "2"]
        assert cli.main(["fit", "--config", str(config), *args]) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")
    last = [tensors(tmp_path / name / "checkpoints" / "last.ckpt") for name in "abc"]
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])


def test_seed_reaches_the_views(config, monkeypatch):
    seen = []
    monkeypatch.setattr(fit, "fit", lambda run: seen.append(run.built.data.seed))
    assert cli.main(["fit", "--config", str(config), "--seed", "7"]) == 0
    assert seen == [7]


@pytest.mark.parametrize("schedule", ["fixed", "cosine"])
def test_two_epochs_equal_one_and_one_resumed(config, tmp_path, schedule, monkeypatch):
    base = ["fit", "--config", str(config), "--model.schedule", schedule]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert cli.main([*base, "--output", str(straight)]) == 0

    # Stop after one of the two epochs, as Ctrl-C would: the schedule is laid out for two.
    with monkeypatch.context() as patch:
        patch.setattr(RunReport, "on_train_epoch_start", interrupt_in_epoch(1))
        assert cli.main([*base, "--output", str(resumed)]) == 130
    assert json.loads((resumed / "summary.json").read_text())["state"] == "interrupted"
    assert len(losses(resumed)) == 1
    again = ["fit", "--config", str(resumed / "config.yaml"), "--ckpt_path", "last"]
    assert cli.main(again) == 0

    assert losses(resumed) == losses(straight)
    ours, theirs = (tensors(run / "checkpoints" / "last.ckpt") for run in (resumed, straight))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def interrupt_in_epoch(epoch):
    def on_train_epoch_start(self, trainer, module):
        self._images, self._start = 0, time.perf_counter()
        self._end = self._start
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt

    return on_train_epoch_start


def test_labels_are_scored_before_training_and_after_every_epoch(tmp_path, photos, capsys):
    config = write_config(tmp_path / "tiny.yaml", photos, val=labelled(tmp_path / "val"))
    assert cli.main(["fit", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    before, after = said.split("epoch 1/2")
    assert "before training:" in before
    assert "images: source's size, no crop\nlabels: at the image's size, nearest pixel" in before
    for part in (before, after):
        assert "corner" in part
        assert "things" in part
    assert "mIoU" in after
    run = tmp_path / "run"
    assert all(0 <= epoch["val/miou"] <= 1 for epoch in losses(run))
    assert {"best.ckpt", "last.ckpt"} <= {p.name for p in (run / "checkpoints").iterdir()}
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    scores = [epoch["val/miou"] for epoch in losses(run)]
    assert best["epoch"] == scores.index(max(scores))

    # The same numbers come from the checkpoint alone.
    args = ["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last"]
    assert cli.main(args) == 0
    table = capsys.readouterr().out
    assert table.split("wrote")[0].strip() in after
    saved = json.loads((run / "validation" / "scores.json").read_text())
    assert saved["miou"] == scores[-1]
    assert saved["classes"] == ["left", "right", "corner"]
    assert saved["protocol"]["checkpoint"] == str(run / "checkpoints" / "last.ckpt")
    assert sorted(p.name for p in (run / "validation" / "images").iterdir()) == [
        f"{kind}-1-{i}.jpg" for kind, i in zip(("best", "worst"), _extremes(run), strict=True)
    ]


def _extremes(run):
    """Names of the images that the report shows as best and as worst."""
    text = (run / "validation" / "report.html").read_text()
    return re.findall(r"<figcaption>(\d)\.png: mIoU", text)


def test_a_matching_learned_on_one_split_scores_another(tmp_path, photos, capsys):
    config = write_config(tmp_path / "tiny.yaml", photos, val=labelled(tmp_path / "train"))
    assert cli.main(["fit", "--config", str(config), "--trainer.max_epochs", "2"]) == 0
    run = tmp_path / "run"
    base = ["validate", "--config", str(config), "--ckpt_path", "last"]
    assert cli.main(base) == 0
    learned = run / "validation" / "scores.json"
    content = json.loads(learned.read_text())
    # Another one than these labels would give, so that it shows which is taken.
    content["assignment"] = np.roll(content["assignment"], 1).tolist()
    learned.write_text(json.dumps(content))

    other = labelled(tmp_path / "val")["init_args"]
    val = [f"--data.val.init_args.{key}={other[key]}" for key in ("images", "labels")]
    capsys.readouterr()
    assert cli.main([*base, *val, "--matching", str(learned)]) == 0
    scores = json.loads((run / "validation-2" / "scores.json").read_text())
    assert scores["assignment"] == content["assignment"]
    assert scores["protocol"]["matching"].startswith(f"taken from {learned} (Hungarian")
    assert str(tmp_path / "train" / "images") in scores["protocol"]["matching"]
    assert scores["protocol"]["data"].startswith(f"3 images of {tmp_path / 'val' / 'images'}")
    said = (run / "validation-2" / "scores.txt").read_text()
    assert f"taken from {learned}" in said
    assert "enlarged bilinearly to the label's size" in said

    # The same matching gives a prediction's categories their names.
    last, out = str(run / "checkpoints" / "last.ckpt"), tmp_path / "named"
    named = ["predict", last, other["images"], "--output", str(out), "--matching", str(learned)]
    assert cli.main(named) == 0
    classes = scores["classes"]
    expected = [
        f"{classes[c]} ({k})" if c >= 0 else f"category {k}"
        for k, c in enumerate(content["assignment"])
    ]
    assert any(name.startswith(classes[0]) for name in expected)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["categories"] == expected
    assert f"matched to in {learned} (Hungarian" in summary["protocol"]["categories"]
    rows = (out / "categories.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[str(k), n] for k, n in enumerate(expected)]
    assert expected[0] in (out / "report.html").read_text()

    wrong = [*base, "--matching", "greedy"]
    assert 'no matching greedy: expected "hungarian", "majority"' in error(capsys, *wrong)


def test_two_processes_report_what_one_does(tmp_path, photos, capsys):
    # Five images: one comes twice, and the report shows more than the first process alone has.
    val = labelled(tmp_path / "val", 5, transform={"resize": 32, "crop": 32})
    config = write_config(tmp_path / "tiny.yaml", photos, val=val)
    # The other process would find out by itself what this machine has.
    args = ["validate", "--config", str(config), "--trainer.precision", "32-true"]
    assert cli.main(args) == 0
    process = start(*args, "--trainer.devices", 2, "--trainer.strategy", "ddp")
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert said.count("wrote") == 1
    run = tmp_path / "run"
    one, both = (
        json.loads((run / name / "scores.json").read_text())
        for name in ("validation", "validation-2")
    )
    assert both == one
    for name in ("scores.csv", "report.html"):
        assert (run / "validation" / name).read_text() == (run / "validation-2" / name).read_text()


def test_over_clustering_and_legacy_scores(tmp_path, photos, capsys):
    config = write_config(tmp_path / "tiny.yaml", photos, val=labelled(tmp_path / "val"))
    base = ["validate", "--config", str(config)]
    assert cli.main([*base, "--head", "aux", "--matching", "majority"]) == 0
    scores = json.loads((tmp_path / "run" / "validation" / "scores.json").read_text())
    assert len(scores["assignment"]) == MODEL["aux_classes"]
    assert "majority of pixels" in scores["protocol"]["matching"]
    assert scores["protocol"]["clusters"] == "6, of the over-clustering head; 3 classes"
    assert scores["protocol"]["checkpoint"] == "none: the model as training starts"
    said = error(capsys, *base, "--head", "aux", "--model.aux_classes", "null")
    assert "--head aux: the model has no over-clustering head" in said

    assert "legacy" in error(capsys, *base, "--legacy")  # the only thing is not the first class
    things = ["--data.val.init_args.classes.things", "[left]"]
    assert cli.main([*base, "--legacy", *things]) == 0
    assert "things (legacy)" in capsys.readouterr().out


def test_rare_validation_still_scores_the_trained_model(tmp_path, photos, capsys):
    config = write_config(tmp_path / "tiny.yaml", photos, val=labelled(tmp_path / "val"))
    args = ["--trainer.max_epochs", "3", "--trainer.validate_every_n_epochs", "2"]
    assert cli.main(["fit", "--config", str(config), *args]) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err
    run = tmp_path / "run"
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 1
    validate = ["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last"]
    assert cli.main(validate) == 0
    table = capsys.readouterr().out.split("wrote")[0].strip()
    assert table in said.out.split("after training:")[1]


# Prediction


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)  # the fixture that sets it for each test comes later
    root = tmp_path_factory.mktemp("trained")
    config = write_config(root / "tiny.yaml", save_scenes(root / "photos", 4)[0])
    assert cli.main(["fit", "--config", str(config), "--trainer.max_epochs", "2"]) == 0
    return root / "run" / "checkpoints" / "last.ckpt"


# Mistakes on the command line and in config files


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.num_clases", "3"], "did you mean model.num_classes?"),
        (["--model.num_classes", "many"], "model.num_classes: expected int, got many"),
        (
            ["--model.rebalance", "often"],
            "expected one of 'none', 'frequency', 'inverse', got often",
        ),
        (
            ["--data.views.init_args.siz", "3"],
            "does not take siz: did you mean size? it takes size",
        ),
        (["--trainer.devices", "two"], "trainer.devices: expected int or 'auto', got two"),
        (["--model.lr", "fast"], "model.lr: expected float or null, got fast"),
        (
            ["--data.views", "TwoCropz"],
            "data.views: expected Views or null, got TwoCropz: did you mean TwoCrops?",
        ),
        (["--trainer.max_epoch", "1"], "did you mean trainer.max_epochs?"),
        (["--config", "nowhere.yaml"], "no file --config nowhere.yaml: expected a YAML file"),
        (["--model.num_classes", "1"], "num_classes must be at least 2 categories, got 1"),
        (["--model.num_classes", "-4"], "num_classes must be at least 2 categories, got -4"),
        (["--trainer.max_epochs", "0"], "max_epochs must be at least 1, got 0"),
        (["--model.backbone", "resnet18x"], "unknown backbone 'resnet18x'"),
        (["--model.region_start", "5"], "RegionSim would start at epoch 5"),
    ],
)
def test_mistakes_in_settings(config, capsys, args, message, tmp_path):
    capsys.readouterr()
    assert cli.main(["fit", "--config", str(config), *args]) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("densesiam: error: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {num_clases: 3}", "did you mean model.num_classes?"),
        ("trainer: {max_epochs: soon}", "max_epochs"),
        ("seed: 1\nmodel: [3", "wrong.yaml is no YAML in line 2, column 10: expected ',' or ']'"),
        ("- seed", "wrong.yaml holds no settings by name: expected lines such as `seed: 1`"),
        ("", "wrong.yaml is empty: expected lines such as `seed: 1`"),
        (
            "data: {views: {class_path: TwoCropz}}",
            "data.views: there is no class TwoCropz: did you mean TwoCrops?\n",
        ),
        (
            "data: {views: {class_path: TwoCrops, init_args: {size: big}}}",
            "data.views: TwoCrops: size: expected int or tuple[int, int], got big\n",
        ),
    ],
)
def test_mistakes_in_config_files(tmp_path, capsys, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert message in error(capsys, "fit", "--config", path, code=2)


# Of each kind, on the parts of one command; the checks are shared by all.
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ("predict", 2, "the following arguments are required: CHECKPOINT, IMAGES"),
        ("export x.ckpt", 2, "the following arguments are required: --format"),
        ("probe knn", 2, "the following arguments are required: --data.train, --data.val"),
        ("probe", 2, "give a task: one of segmentation,classification,knn"),
        ("", 2, "give a command: one of fit,validate,predict"),
        ("export x.ckpt --format torch --size 3", 2, "size: expected a list such as [1, 2], got 3"),
        ("predict x y --format coc", 2, "format: expected one of 'coco', 'coco-polygons'"),
        ("fit --config FOLDER", 2, "--config FOLDER is a folder: expected a YAML file"),
        ("fit --config BYTES", 2, "--config BYTES is no text: expected a YAML file"),
        ("predict FOLDER x", 1, "FOLDER is a folder, not a checkpoint: expected a .ckpt file"),
        ("export FOLDER --format timm", 1, "FOLDER is a folder, not a checkpoint"),
        ("validate --ckpt_path FOLDER", 1, "FOLDER is a folder, not a checkpoint"),
        ("fit --data.train BYTES", 1, "expected a folder of images, got a file: BYTES"),
        ("fit --data.train samples --output BYTES", 1, "BYTES is a file: give another --output"),
        ("demo --output BYTES", 1, "BYTES is a file: give another --output"),
    ],
)
def test_mistakes_on_command_lines(tmp_path, monkeypatch, capsys, args, code, message):
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    Path("BYTES").write_bytes(b"\xff\xfe")
    assert message in error(capsys, *args.split(), code=code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BYTES", "FOLDER"]


@pytest.mark.parametrize("task", ["transfer segmentation", "transfer detection", "probe knn"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {backbone: test_byobnet, strids: [4]}", "unknown setting model.strids"),
        ("model: {backbone: [3]}", "model.backbone: expected str, got [3]"),
        ("data: {vall: null}", "did you mean data.val?"),
        ("trainer: {epochs: 3}", "unknown setting trainer.epochs"),
    ],
)
def test_mistakes_in_config_files_of_tasks(task, tmp_path, capsys, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert message in error(capsys, *task.split(), "--config", path, code=2)


@pytest.mark.parametrize(
    ("args", "file", "command"),
    [
        ("pretrain", "configs/folder.yaml", "fit"),
        ("fit", "configs/segmentation/picie.yaml", "picie"),
        ("fit", "configs/transfer/coco_r50_1x.yaml", "transfer detection"),
        ("transfer detection", "configs/transfer/voc_linear.yaml", "probe segmentation"),
        ("fit", "pretrained.yaml", "pretrain"),  # as a run's folder has it: without a comment
        ("pretrain", "segmenter.yaml", "fit"),
    ],
)
def test_a_file_for_another_command(tmp_path, monkeypatch, capsys, args, file, command):
    monkeypatch.chdir(ROOT)
    if "/" not in file:
        settings = {"fit": "model: {aux_classes: 3}", "pretrain": "model: {grid: 3}"}[command]
        file = tmp_path / file
        file.write_text(f"seed: 1\noutput: {tmp_path / 'out'}\n{settings}\n")
    said = error(capsys, *args.split(), "--config", file, code=2)
    assert said.endswith(f". {file} is for `densesiam {command}`, and this is `densesiam {args}`\n")


def test_a_file_for_another_command_whose_settings_are_known_too(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    file = "configs/pretrain/folder.yaml"
    hint = f"{file} is for `densesiam pretrain`, and this is `densesiam fit`"
    with pytest.warns(UserWarning, match=hint):
        error(capsys, "fit", "--config", file, code=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error(capsys, "pretrain", "--config", file, code=1)
        error(capsys, "validate", "--config", "configs/folder.yaml", "--ckpt_path", "x", code=1)


@pytest.mark.parametrize("given", ["--config FILE", "--config=FILE"])
def test_the_packages_files_are_found_in_any_folder(tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    own = given.replace("FILE", "configs/folder.yaml").split()
    assert "no training data: give data.train" in error(capsys, "fit", *own, code=1)
    wrong = given.replace("FILE", "configs/fodler.yaml").split()
    assert "no file --config configs/fodler.yaml" in error(capsys, "fit", *wrong, code=2)
    Path("configs").mkdir()
    Path("configs/folder.yaml").write_text("model: {num_clases: 3}")  # one's own goes first
    assert "unknown setting model.num_clases" in error(capsys, "fit", *own, code=2)


def test_data_of_another_kind(capsys):
    said = error(capsys, "transfer", "detection", "--data.train", "VocSegmentation", code=2)
    assert "data.train: VocSegmentation is of another kind: expected ObjectImages or null" in said


def test_unknown_and_missing_commands(capsys):
    assert "invalid choice: 'train'" in error(capsys, "train", code=2)
    error(capsys, code=2)


def test_help_is_for_newcomers(capsys):
    for args, texts in (
        (["--help"], ["densesiam demo", "fit", "validate", "predict"]),
        (["fit", "--help"], ["folder of images", "--ckpt_path", "how many epochs to train"]),
        (["predict", "--help"], ["The trained model, a .ckpt file.", "--resize"]),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(args)
        assert exit_.value.code == 0
        said = capsys.readouterr().out
        assert all(text in said for text in texts)


# Data that does not do


def fit_error(capsys, config, *args):
    return error(capsys, "fit", "--config", config, *args)


def test_no_data_given(config, capsys, tmp_path):
    assert "no training data" in fit_error(capsys, config, "--data.train", "null")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_missing_and_empty_folders(config, capsys, tmp_path):
    said = fit_error(capsys, config, "--data.train", tmp_path / "nowhere")
    assert f"no such folder of images: {tmp_path / 'nowhere'}" in said
    (tmp_path / "empty").mkdir()
    said = fit_error(capsys, config, "--data.train", tmp_path / "empty")
    assert f"no images in {tmp_path / 'empty'}: it is empty" in said


def test_fewer_images_than_the_batch(config, capsys):
    assert "fewer images than the batch" in fit_error(capsys, config, "--data.batch_size", "5")


def test_one_image_a_batch(config, capsys):
    said = fit_error(capsys, config, "--data.batch_size", "1")
    assert "batch normalisation needs at least 2 images" in said


def test_a_backbone_of_another_size_is_refused_first(config, capsys, monkeypatch, tmp_path):
    small = partial(timm.create_model, depth=3, embed_dim=12, num_heads=3)
    monkeypatch.setattr(timm, "create_model", small)
    choice = ("--model.backbone", "beit_base_patch16_224", "--model.strides", "[16]")
    said = fit_error(capsys, config, *choice)
    assert "beit_base_patch16_224 takes images of 224 x 224 pixels alone, not of 32 x 32" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_skipped_or_stop_the_run(config, photos, capsys, workers):
    (photos / "broken.png").write_bytes(b"not a picture")
    args = ("--data.num_workers", workers, "--data.errors", "raise")
    assert f"cannot read image {photos / 'broken.png'}" in fit_error(capsys, config, *args)


def test_unreadable_images_are_skipped_with_a_warning(config, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"not a picture")
    with pytest.warns(UserWarning, match=r"broken\.png"):
        assert cli.main(["fit", "--config", str(config)]) == 0


def test_labels_of_another_size_or_with_unknown_values(tmp_path, photos, capsys):
    for value, size, message in (
        (7, (64, 40), "label values outside the class table: [7]"),
        (0, (20, 20), "is 20 x 20 pixels, but its image"),
    ):
        root = tmp_path / str(value)
        val = labelled(root)
        Image.new("L", size, value).save(root / "labels" / "2.png")
        config = write_config(tmp_path / "tiny.yaml", photos, val=val)
        said = fit_error(capsys, config, "--output", tmp_path / f"run-{value}")
        assert message in said
        assert "2.png" in said


# Folders and checkpoints


def test_nothing_is_overwritten(config, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diary.txt").write_text("dear diary")
    assert "is not empty, and nothing there will be overwritten" in fit_error(capsys, config)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["diary.txt"]


def test_each_command_has_its_own_default_folder():
    found = [
        default_folder(Namespace(config=[f"configs/{name}.yaml"] if name else None), command)
        for command, name in (
            ("fit", "folder"),
            ("fit", ""),
            ("pretrain", "pretrain/folder"),
            ("picie", "segmentation/picie"),
            ("transfer segmentation", "voc_fcn"),
            ("transfer segmentation", ""),
        )
    ]
    assert found == [
        "outputs/folder",
        "outputs/fit",
        "outputs/pretrain/folder",
        "outputs/picie",
        "outputs/transfer-segmentation/voc_fcn",
        "outputs/transfer-segmentation",
    ]


def test_default_folders_are_numbered(tmp_path):
    default = str(tmp_path / "run")
    assert claim_folder(None, default) == tmp_path / "run"
    assert claim_folder(None, default) == tmp_path / "run"  # nothing came of it
    (tmp_path / "run" / "file").touch()
    assert claim_folder(None, default) == tmp_path / "run-2"


def test_output_that_cannot_be_written(config, tmp_path, capsys):
    (tmp_path / "file").touch()
    said = fit_error(capsys, config, "--output", tmp_path / "file" / "run")
    assert f"cannot write to {tmp_path / 'file' / 'run'}" in said


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder nobody may write to")
def test_output_without_permission(config, capsys):
    assert "cannot write to /proc/run" in fit_error(capsys, config, "--output", "/proc/run")


def test_checkpoints_that_are_none(config, trained, tmp_path, capsys):
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(trained.read_bytes()[:5000])
    for path, message in (
        (text, "is not a checkpoint, or is damaged"),
        (cut, "is not a checkpoint, or is damaged"),
        (other, "is not a segmentation model's checkpoint"),
        (tmp_path / "none.ckpt", "no checkpoint"),
    ):
        out = tmp_path / "out"
        assert message in fit_error(capsys, config, "--ckpt_path", path, "--output", out)
        assert message in error(capsys, "predict", path, tmp_path, "--output", out)
        assert not out.exists() or not any(out.iterdir())


def test_a_checkpoint_runs_no_code(config, tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": {}, "hyper_parameters": Trap()}, tmp_path / "trap.ckpt")
    fit_error(capsys, config, "--ckpt_path", tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_checkpoint_of_another_architecture(config, trained, tmp_path, capsys):
    said = fit_error(
        capsys, config, "--ckpt_path", trained, "--model.channels", "12", "--trainer.max_epochs", 3
    )
    assert "does not fit this DenseSiamSegmentation" in said
    assert "encoder" in said


def test_going_on_where_there_is_nothing_to_do(config, trained, capsys):
    said = fit_error(capsys, config, "--ckpt_path", trained)
    assert "has trained 2 epochs already, and trainer.max_epochs is 2" in said


@pytest.mark.parametrize("schedule", ["fixed", "cosine"])
def test_training_can_be_prolonged(config, tmp_path, capsys, schedule):
    """Each step's rate is the new length's."""
    base = ["fit", "--config", str(config), "--model.schedule", schedule]
    assert cli.main(base) == 0
    assert cli.main([*base, "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert "trained for 3 epochs instead of 2" in capsys.readouterr().out
    assert cli.main([*base, "--output", f"{tmp_path}/whole", "--trainer.max_epochs", "3"]) == 0
    found, whole = (losses(tmp_path / name)[2]["train/lr"] for name in ("run", "whole"))
    assert found == whole


def test_validation_needs_labels(config, capsys):
    assert "no labelled images: give data.val" in error(capsys, "validate", "--config", config)


# The whole program


def start(*args):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "densesiam.cli", *map(str, args)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where tests run in the background of a shell, Ctrl-C is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("module", ["densesiam", "densesiam.cli"])
def test_it_is_a_module_as_well(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"densesiam {densesiam.__version__}\n")


def test_ctrl_c_keeps_the_last_checkpoint_and_says_where(config, tmp_path):
    process = start("fit", "--config", config, "--trainer.max_epochs", 10000)
    for line in process.stdout:
        if re.match(r"epoch +3/", line):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"interrupted by SIGINT; {last} holds all" in said
    assert "--ckpt_path auto" in said
    assert "Traceback" not in said
    assert read_checkpoint(last)["epoch"] >= 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "interrupted"


def test_dinov2s_configuration_trains_and_predicts(photos, monkeypatch, tmp_path):
    narrow = partial(timm.create_model, embed_dim=24, num_heads=2)  # and random weights
    monkeypatch.setattr(timm, "create_model", narrow)
    small = {
        "data.train": photos,
        "data.views.init_args.resize": 48,
        "data.views.init_args.size": 45,  # no multiple of 14
        "data.batch_size": 2,
        "data.num_workers": 0,
        "model.region_weight": 0,  # two steps are too few for it
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
        "output": tmp_path / "dino",
    }
    options = [str(part) for name, value in small.items() for part in (f"--{name}", value)]
    config = ROOT / "configs" / "folder_dinov2.yaml"
    assert cli.main(["fit", "--config", str(config), *options]) == 0
    last, segmented = tmp_path / "dino" / "checkpoints" / "last.ckpt", tmp_path / "segmented"
    args = [str(last), str(photos), "--resize", "40", "--output", str(segmented)]
    assert cli.main(["predict", *args]) == 0
    assert list(segmented.rglob("*.png"))


# Tested where they are used: in test_pretrain and tests/transfer.
ELSEWHERE = {"pretrain", "transfer"}
CONFIGS = [
    p
    for p in sorted((ROOT / "configs").rglob("*.yaml"))
    if p.parent.name not in ELSEWHERE and p.stem != "picie"
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path, monkeypatch):
    monkeypatch.chdir("/")  # whatever they name is found from where they lie
    layers = [path]
    if path.stem == "official":
        layers.insert(0, path.with_name("coco27_r18.yaml"))
    parser, _ = build_parsers()
    config = parser.parse_args(["fit", *(f"--config={layer}" for layer in layers)]).fit
    if path.parent.name == "segmentation":
        table = {"coco27_r18": "coco_stuff27", "official": "coco_stuff27", "voc_r18": "voc"}
        classes = known_table(table.get(path.stem, "cityscapes27"))
        assert len(classes.names) == config.model.num_classes
