"""The CamVid study on a small data set of the same layout."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

from studies.camvid import study as camvid_study
from studies.camvid.study import BUDGETS, ROWS, TASKS, Centred, Run
from studies.support import needs_weights
from tests.tolerance import assert_close


def measure(run, data, output):
    camvid_study.measure(run, data, output, torch.get_num_threads())
    return json.loads((output / run.file).read_text())


@needs_weights
@pytest.mark.parametrize("task", TASKS)
def test_a_training_run_leaves_its_scores(task, camvid, tmp_path, monkeypatch):
    monkeypatch.setitem(BUDGETS, "1 minute", 6)  # RegionSim starts after 0.8 of it
    result = measure(Run(task, "densesiam", "1 minute", 1), camvid, tmp_path)
    assert (result["task"], result["row"], result["seed"]) == (task, "densesiam", 1)
    for split in ("val", "test"):
        scores = result[split]
        classes = len(scores["iou"])
        assert f"{classes} " in task
        confusion = np.array(scores["confusion"])
        assert confusion.shape == (classes, classes)
        assert confusion.sum() == 2 * 11 * 16 * 256  # every labelled pixel at full size
        assert 0 < scores["miou"] < scores["accuracy"] <= 100
    assert result["seconds"] > 0
    assert result["cpu_seconds"] > 0
    assert result["peak_memory_mib"] > 100


@needs_weights
def test_a_run_that_chooses_never_sees_the_test_split(camvid, tmp_path, monkeypatch):
    monkeypatch.setitem(ROWS, "search-x", ROWS["one-class"])
    result = measure(Run("6 groups", "search-x", "1 minute", 0), camvid, tmp_path)
    assert "val" in result
    assert "test" not in result


def settings(row, camvid):
    """What a row's model and data are made with, by dotted key."""
    config = camvid_study._build(Run("6 groups", row, "1 minute", 0), camvid).config
    return flat(yaml.safe_load(config))


def flat(nested, prefix=""):
    items = {}
    for name, value in nested.items():
        key = prefix + name
        items |= flat(value, key + ".") if isinstance(value, dict) else {key: value}
    return items


@pytest.fixture(scope="module")
def plain(camvid):
    return settings("densesiam", camvid)


@needs_weights
@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_the_settings_that_it_names_and_no_other(row, camvid, plain):
    changed = {k: v for k, v in settings(row, camvid).items() if v != plain[k]}
    epochs = {1: {}, 1 / 2: {"trainer.max_epochs": 3}, 1 / 3: {"trainer.max_epochs": 2}}
    assert changed == ROWS[row].settings | epochs[ROWS[row].share]


@needs_weights
@pytest.mark.parametrize(
    "row", ["one-class", "colour-position", "features-16", "untrained-settled"]
)
def test_baselines_are_scored_on_the_same_pixels(row, camvid, tmp_path):
    result = measure(Run("11 classes", row, "1 minute", 0), camvid, tmp_path)
    confusion = np.array(result["test"]["confusion"])
    assert confusion.sum() == 2 * 11 * 16 * 256
    used = (confusion.sum(axis=0) > 0).sum()
    assert used == 1 if row == "one-class" else used > 5


def test_centring_undoes_the_offset_of_tensorflow_padding():
    """A backbone whose every feature says where it really lies."""

    def backbone(images):
        return [
            (stride * torch.arange(64 // stride) + stride - 0.5).expand(2, 1, 64 // stride, -1)
            for stride in (4, 8)
        ]

    for stride, stage in zip(
        (4, 8), Centred(backbone, (4, 8))(torch.zeros(2, 3, 64, 64)), strict=True
    ):
        centres = stride * (torch.arange(64 // stride) + 0.5)
        assert_close(stage[0, 0, 0, 1:], centres[1:], terms=12)  # the first lies at the border


def test_every_run_is_planned_once():
    runs = list(camvid_study.planned(list(ROWS), list(TASKS), list(BUDGETS), 3))
    assert len(set(runs)) == len(runs) == len({run.file for run in runs})
    for task in TASKS:
        assert [r.seed for r in runs if (r.task, r.row) == (task, "one-class")] == [0]
        assert len([r for r in runs if (r.task, r.row) == (task, "features-16")]) == 3
        assert len([r for r in runs if (r.task, r.row) == (task, "densesiam")]) == 6


def saved(folder, run, val, test=None, predicted=None):
    """A result file with these mIoU, and twice as large accuracies."""
    scores = {"val": val, "test": test, "test in bfloat16": predicted}
    result = {
        split: {"miou": miou, "accuracy": 2 * miou}
        for split, miou in scores.items()
        if miou is not None
    }
    numbers = {"seconds": 60, "cpu_seconds": 100, "peak_memory_mib": 900}
    (folder / run.file).write_text(json.dumps(vars(run) | numbers | result))


def test_finished_runs_are_not_repeated(camvid, tmp_path, monkeypatch, capsys):
    for seed, miou in enumerate((10.0, 20.0, 27.0)):
        saved(tmp_path, Run("11 classes", "densesiam", "1 minute", seed), miou + 3, miou)
    saved(tmp_path, Run("11 classes", "search-wide", "1 minute", 0), 31.0)
    arguments = ["--data", str(camvid), "--output", str(tmp_path), "--rows", "densesiam"]
    arguments += ["--tasks", "11 classes", "--budgets", "1 minute"]
    monkeypatch.setattr(sys, "argv", ["camvid_study", *arguments])
    camvid_study.main()
    test, val = (tmp_path / "table.md").read_text().split("\n\n")
    densesiam = "| 11 classes | DenseSiam | 1 minute | 3 |"
    numbers = "| 60 | 100 | 900 |"
    assert test.splitlines()[2:] == [f"{densesiam} 19.0 (10.0-27.0) | 38.0 (20.0-54.0) {numbers}"]
    assert val.splitlines()[2:] == [
        f"{densesiam} 22.0 (13.0-30.0) | 44.0 (26.0-60.0) {numbers}",
        f"| 11 classes | 128 channels | 1 minute | 1 | 31.0 | 62.0 {numbers}",
    ]
    assert test in capsys.readouterr().out


def test_bfloat16_is_paired_by_seed(tmp_path, monkeypatch, capsys):
    for seed in range(3):
        for precision, more in (("32-true", 0), ("bf16-mixed", seed)):
            run = Run("6 groups", "fine-144", "1 minute", seed, precision)
            saved(
                tmp_path,
                run,
                30.0,
                20.0 + more,
                predicted=19.0 if precision == "32-true" and seed < 2 else None,
            )
    saved(tmp_path, Run("6 groups", "fine-144", "1 minute", 3, "bf16-mixed"), 30.0, 90.0)
    (tmp_path / Run("6 groups", "fine-144", "1 minute", 9).file).write_text(
        (tmp_path / Run("6 groups", "fine-144", "1 minute", 0).file)
        .read_text()
        .replace('"precision": "32-true", ', "")  # as the first runs were
    )
    monkeypatch.setattr(sys, "argv", ["camvid_study", "--output", str(tmp_path), "--table"])
    camvid_study.main()
    test, pairs = capsys.readouterr().out.strip().split("\n\n")
    assert "| 4 | 20.0 (20.0-20.0) |" in test
    title = "6 groups, views of 144 x 192, half the steps, 1 minute"
    lines = [line for line in pairs.splitlines() if "| mIoU |" in line]
    assert lines == [
        f"| {title}, trained | 3 | mIoU | 20.0 | 21.0 | +1.0 (-1.5 to +3.5) |",
        f"| {title}, predicted | 2 | mIoU | 20.0 | 19.0 | -1.0 (-1.0 to -1.0) |",
    ]


@needs_weights
def test_a_run_trains_in_its_precision(camvid):
    for precision in ("32-true", "bf16-mixed"):
        built = camvid_study._build(Run("6 groups", "densesiam", "1 minute", 0, precision), camvid)
        assert built.options.precision == precision


def test_data_that_is_not_there_stops_the_study(tmp_path, monkeypatch):
    arguments = ["--data", str(tmp_path / "none"), "--output", str(tmp_path), "--rows", "one-class"]
    monkeypatch.setattr(sys, "argv", ["camvid_study", *arguments])
    with pytest.raises(SystemExit, match=r"none/train/images, .*CamVid is expected as"):
        camvid_study.main()
