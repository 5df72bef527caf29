"""Training images that vanish: replaced, counted, tried again, and too many end the run."""

import json
from types import SimpleNamespace

import pytest
import torch

from densesiam import cli
from densesiam.data import ImageReadError
from densesiam.data.sets.classified import ClassifiedImages
from densesiam.training import unreadable
from densesiam.training.report import RunReport
from densesiam.training.unreadable import UnreadableImages
from tests.training.earlier.commands import prepare
from tests.training.support import command, send
from tests.transfer.support import error, same, save_classes, tensors

pytestmark = pytest.mark.filterwarnings("ignore:cannot read image:UserWarning")

DAMAGED = "3.png"  # of eight photographs


def counted(run):
    return json.loads((run / "summary.json").read_text())["unreadable"]


def fit(tmp_path, workers):
    return [*command("fit", tmp_path), "--data.num_workers", str(workers)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_replaces_and_counts_as_one_that_was_not_stopped(
    workers, tmp_path, steps, capsys
):
    args = [*fit(tmp_path, workers), "--data.max_unreadable", "0.01"]  # rounded up: one
    damaged = tmp_path / "photos" / DAMAGED
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert cli.main([*args, "--output", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    assert f"images that could not be read: 1, replaced by others 2 times: {damaged}" in said
    whole, steps[:] = list(steps), []

    for step in (1, 5):  # four steps an epoch
        steps.before[step] = send(15)
        assert cli.main(args) == 143
    assert cli.main(args) == 0
    assert steps == whole
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    expected = {"images": 1, "replaced": 2, "first": [str(damaged)]}
    assert counted(tmp_path / "run") == counted(tmp_path / "whole") == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_comes_back_is_taken_again(workers, tmp_path, monkeypatch):
    args = [*fit(tmp_path, workers), "--data.max_unreadable", "0.2"]
    missing, aside = tmp_path / "photos" / DAMAGED, tmp_path / DAMAGED
    missing.rename(aside)
    missing.touch()  # found when the folder is listed, but no image
    end = RunReport.on_train_epoch_end

    def back(self, trainer, model):
        end(self, trainer, model)
        if trainer.current_epoch == 0:
            aside.rename(missing)

    monkeypatch.setattr(RunReport, "on_train_epoch_end", back)
    assert cli.main(args) == 0
    assert counted(tmp_path / "run") == {"images": 1, "replaced": 1, "first": [str(missing)]}


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_end_the_run_which_goes_on_when_they_are_back(workers, tmp_path, steps, capsys):
    args = fit(tmp_path, workers)
    photos, aside = tmp_path / "photos", tmp_path / "aside"
    aside.mkdir()

    def vanish():
        for name in ("2.png", "5.png"):
            (photos / name).rename(aside / name)
            (photos / name).touch()

    steps.before[0] = vanish  # some images of the epoch were loaded before
    said = error(capsys, *args, "--trainer.max_epochs", "3")
    assert "images of epoch" in said
    assert "of the 8 images" in said
    assert "data.max_unreadable allows" in said
    assert str(photos / "2.png") in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert 0 < summary["unreadable"]["images"] <= 2
    for path in aside.iterdir():
        path.rename(photos / path.name)
    assert cli.main([*args, "--trainer.max_epochs", "3"]) == 0


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("transfer segmentation", "train/labels/1.png"),
        ("transfer detection", "train/images/000000000001.png"),
        ("probe classification", "train/red/0.png"),
    ],
)
def test_labelled_images_are_replaced_with_their_labels(name, path, tmp_path):
    args = [*prepare(name, tmp_path), "--data.max_unreadable", "0.5"]
    (tmp_path / path).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=rf"cannot read .*{path}.*takes its place"):
        assert cli.main(args) == 0
    assert counted(tmp_path / "run")["images"] == 1


def test_the_label_is_that_of_the_image_that_was_taken(tmp_path):
    root = save_classes(tmp_path, 2)
    whole = ClassifiedImages(root, 32, None)
    assert [whole[i]["label"].item() for i in range(4)] == [0, 0, 1, 1]
    (root / "blue" / "1.png").write_bytes(b"damaged")
    item = ClassifiedImages(root, 32, None, errors="skip")[1]
    assert [item[key].item() for key in ("label", "index", "skipped")] == [1, 2, 1]


@pytest.fixture
def two(monkeypatch):
    """Two processes; the other one saw image 5 in the place of image 4."""
    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        all_reduce=lambda count: count.add_(1),
        all_gather_object=lambda parts, mine: parts.__setitem__(slice(None), [mine, {4}]),
    )
    monkeypatch.setattr(unreadable, "dist", fake)
    dataset = SimpleNamespace(paths=list(range(10)))
    return SimpleNamespace(
        train_dataloader=SimpleNamespace(dataset=dataset), num_training_batches=2, world_size=2
    )


def batch(index, skipped):
    return {"index": torch.tensor(index), "skipped": torch.tensor(skipped)}


def test_processes_count_together(two):
    data = SimpleNamespace(batch_size=2, max_unreadable=0.375)  # of eight images
    callback = UnreadableImages(data, every_n_steps=2)
    callback.on_train_batch_end(two, None, None, batch([7, 1], [0, 3]))
    assert callback.summary()["images"] == 0
    callback.on_train_batch_end(two, None, None, batch([3, 6], [0, 0]))
    assert callback.summary() == {"images": 4, "replaced": 2, "first": ["0", "4", "8", "9"]}
    callback.on_train_epoch_end(two, None)  # nothing new, and no count of the other
    callback.on_train_batch_end(two, None, None, batch([5, 5], [1, 1]))
    with pytest.raises(ImageReadError, match=r"5 of the 8 images of epoch 1 .* share of 0.375"):
        callback.on_train_epoch_end(two, None)
