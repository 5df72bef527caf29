"""``densesiam predict`` on any folder."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from densesiam import cli
from densesiam.cli import predict as command
from densesiam.cli.predict import Settings, predict
from densesiam.data import sample_paths
from densesiam.data.image import files
from densesiam.reports.prediction import PredictionWriter
from densesiam.training.lock import Lock
from tests.cli.predicting import MODEL, save_labelled, save_photo, save_segmenter, save_transfer
from tests.tolerance import assert_close


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("segmenter") / "last.ckpt")


@pytest.fixture
def run(checkpoint, tmp_path, capfd):
    """Run the command; returns its code, what it said and what is in the folder's summary."""

    def run(*args, output="out", model=checkpoint):
        out = [] if output is None else ["--output", str(tmp_path / output)]
        code = cli.main(["predict", str(model), *map(str, args), *out])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        path = tmp_path / (output or "outputs/predictions") / "summary.json"
        summary = json.loads(path.read_text()) if path.is_file() else None
        return code, captured.out + captured.err, summary

    return run


def test_sizes_names_and_shares(run, tmp_path):
    sizes = {"a.png": (61, 33), "a.jpg": (40, 40), "day 1/b.jpg": (30, 50)}
    for i, (name, size) in enumerate(sizes.items()):
        save_photo(tmp_path / "holiday" / name, *size, seed=i)
    code, said, summary = run(tmp_path / "holiday")
    out = tmp_path / "out"
    assert code == 0
    assert str(out) in said
    assert summary["images"] == ["a.jpg", "a.png", "day 1/b"]
    counts = []
    for (name, size), result in zip(sizes.items(), ["a.png", "a.jpg", "day 1/b"], strict=True):
        with Image.open(out / "labels" / f"{result}.png") as label:
            assert (label.size, label.mode) == (size, "L"), name
            counts.append(np.bincount(np.asarray(label).ravel(), minlength=3))
        with Image.open(out / "overlays" / f"{result}.jpg") as painted:
            assert painted.size == size
    counts = torch.tensor(np.array(counts), dtype=torch.float64)
    assert (counts.sum(0) > 0).sum() > 1  # else the test says little
    shares = torch.tensor(summary["category_shares"], dtype=torch.float64)
    assert_close(shares, counts.sum(0) / counts.sum(), terms=2)
    # A large image counts no more than a small one.
    shares = torch.tensor(summary["image_shares"], dtype=torch.float64)
    assert_close(shares, (counts / counts.sum(1, keepdim=True)).mean(0), terms=6)
    rows = list(csv.reader((out / "areas.csv").open()))
    assert rows[0] == ["image", "width", "height", "confidence", "no category"] + [
        f"category {k}" for k in range(3)
    ]
    areas = {row[0]: row for row in rows[1:]}
    assert [int(pixels) for pixels in areas["a.png"][5:]] == counts[0].int().tolist()
    assert areas["a.png"][1:3] == ["61", "33"]
    assert 1 / 3 < float(areas["a.png"][3]) <= 1
    for name in ("contact_sheet.jpg", "legend.png", "names.yaml", "categories.csv", "report.html"):
        assert (out / name).is_file()


def test_unreadable_images_are_listed_with_their_reason(run, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_WAITS", ())  # nothing comes back here
    photos = tmp_path / "photos"
    save_photo(photos / "a.png")
    whole = save_photo(photos / "cut.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    (photos / "gone.png").symlink_to(tmp_path / "nothing")
    (photos / "text.png").write_text("not a picture")
    (photos / "x.heic").touch()
    save_photo(photos / "large.png", 200, 100)
    save_photo(photos / "z.png")
    code, said, summary = run(photos, "--max_pixels", 19_999)
    assert code == 3
    assert "5 of 7 images could not be segmented" in said
    assert said.count("densesiam: error: ") == 1
    assert summary["images"] == ["a", "z"]
    reasons = {Path(e["image"]).name: e["reason"] for e in summary["not_segmented"]}
    assert sorted(reasons) == ["cut.jpg", "empty.png", "gone.png", "large.png", "text.png"]
    assert "200 x 100 pixels are more than the limit of 19,999" in reasons["large.png"]
    assert "truncated" in reasons["cut.jpg"].lower()
    assert "No such file" in reasons["gone.png"]
    assert summary["not_used"]["kinds"] == {".heic": 1}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not segmented" in page
    assert "200 x 100 pixels are more" in page
    assert "1 .heic" in page
    assert "2 images, 5 not segmented" in page
    assert "1 .heic" in said
    # Once it can be read, the same command does what is missing.
    (photos / "cut.jpg").write_bytes(whole)
    code, said, summary = run(photos)
    assert code == 3
    assert "2 of 7 images are done already" in said
    assert summary["images"] == ["a", "cut", "large", "z"]


def test_folders_that_cannot_be_looked_into_are_listed(run, tmp_path, monkeypatch):
    save_photo(tmp_path / "photos" / "a.png")
    save_photo(tmp_path / "photos" / "private" / "b.png")
    scandir = os.scandir

    def refused(path):  # what permissions do, but for root
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    code, said, summary = run(tmp_path / "photos")
    private = str(tmp_path / "photos" / "private")
    assert code == 3
    assert "1 of 2 images could not be segmented" in said
    assert summary["images"] == ["a"]
    assert summary["not_segmented"] == [{"image": private, "reason": "Permission denied"}]
    code, said, _ = run(tmp_path / "photos", "--errors", "raise", output="none")
    assert code == 1
    assert f"cannot look into {private}: Permission denied" in said
    with pytest.warns(UserWarning, match="private cannot be looked into: Permission denied"):
        assert len(files.find_images(tmp_path / "photos")) == 1


def test_errors_can_end_it(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"not a picture")
    save_photo(tmp_path / "photos" / "z.png")
    code, said, summary = run(tmp_path / "photos", "--errors", "raise")
    assert code == 1
    assert f"cannot read image {tmp_path / 'photos' / 'broken.jpg'}" in said
    assert summary is None


def test_a_kill_is_gone_on_from(run, checkpoint, tmp_path, monkeypatch):
    """Whatever is killed, also in the middle of the record's line."""
    photos = tmp_path / "photos"
    for i in range(4):
        save_photo(photos / f"{i}.png", seed=i)
    run(photos, output="whole")

    class Killed(BaseException):
        pass

    add = PredictionWriter.add

    def dies(self, photo, *args):
        if photo.name == "2":
            raise Killed
        add(self, photo, *args)

    monkeypatch.chdir(tmp_path)  # the default folder is found again too
    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "add", dies)
        with pytest.raises(Killed):
            predict(checkpoint, [str(photos)])
    record = Path("outputs/predictions/predictions.jsonl")
    lines = record.read_text().splitlines()
    assert len(lines) == 1 + 2
    record.write_text("\n".join([*lines, lines[-1][:40]]))
    (photos / "0.png").unlink()  # which changes nothing about the others
    save_photo(photos / "1.png", seed=9)  # another content
    (photos / "own").symlink_to(tmp_path / "outputs")  # results are no photographs
    added = []
    with monkeypatch.context() as patch:
        patch.setattr(
            PredictionWriter,
            "add",
            lambda self, photo, *a: (added.append(photo.name), add(self, photo, *a)),
        )
        code, said, summary = run(photos, output=None)
    assert code == 0
    assert added == ["1", "2", "3"]
    assert summary["images"] == ["1", "2", "3"]
    assert len(summary["not_used"]["own_results"]) == 1
    for name in ("2", "3"):
        for kind in ("labels/{}.png", "overlays/{}.jpg", "thumbnails/{}.png"):
            path = kind.format(name)
            assert (
                Path("outputs/predictions", path).read_bytes()
                == (tmp_path / "whole" / path).read_bytes()
            )
    # What has ended is left alone.
    code, said, _ = run(photos, output=None)
    assert "wrote outputs/predictions-2" in said


def test_other_settings_are_refused(run, tmp_path):
    save_photo(tmp_path / "photos" / "a.png")
    assert run(tmp_path / "photos")[0] == 0
    code, said, _ = run(tmp_path / "photos", "--resize", 24)
    assert code == 1
    assert "holds predictions with other settings: resize was 40, and is 24" in said
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").touch()
    code, said, _ = run(tmp_path / "photos", output="taken")
    assert code == 1
    assert "not empty" in said


def test_two_at_once_do_not_share_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "photos" / "a.png")
    assert run("photos")[0] == 0
    with Lock(tmp_path / "out"):
        code, said, _ = run("photos")
    assert code == 1
    assert f"{tmp_path / 'out'} is in use by process {os.getpid()}" in said
    assert run("photos")[0] == 0  # it was given back
    shutil.copytree("out", "outputs/predictions")
    Path("outputs/predictions/summary.json").unlink()  # as one that is at work
    with Lock(Path("outputs/predictions")):
        assert "wrote outputs/predictions-2" in run("photos", output=None)[1]
    assert "wrote outputs/predictions:" in run("photos", output=None)[1]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"settings": 3}'])
def test_a_record_that_is_none_is_named(run, tmp_path, content):
    save_photo(tmp_path / "photos" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text(content)
    code, said, _ = run(tmp_path / "photos")
    assert code == 1
    assert "predictions.jsonl does not say with which settings it was begun" in said


def test_a_signal_says_how_to_go_on(run, tmp_path, monkeypatch):
    for i in range(3):
        save_photo(tmp_path / "photos" / f"{i}.png")
    add = PredictionWriter.add

    def signalled(self, photo, *args):
        add(self, photo, *args)
        if photo.name == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PredictionWriter, "add", signalled)
    code, said, summary = run(tmp_path / "photos")
    assert code == 143
    assert "interrupted by SIGTERM: 2 of 3 images are done; the same command goes on" in said
    assert summary is None


def test_files_folders_patterns_and_samples_together(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/note.txt", "c/x[1].png"):
        save_photo(tmp_path / name) if name.endswith("png") else (tmp_path / name).touch()
    code, _, summary = run("a/*.png", "b", "c/x[1].png", "a/1.png", "samples", "--resize", 16)
    assert code == 0
    assert summary["images"][:4] == ["a/1", "a/2", "b/1", "c/x[1]"]
    assert summary["images"][4:6] == ["astronaut", "cat"]
    assert len(summary["images"]) == 4 + len(sample_paths())
    assert summary["not_used"]["kinds"] == {".txt": 1}
    assert summary["not_used"]["repeated"] == ["a/1.png"]
    code, said, _ = run("d/*.png", output="none")
    assert "nothing matches the pattern d/*.png" in said
    code, said, _ = run("d", output="none")
    assert "no such folder of images or file: d" in said
    assert not (tmp_path / "none").exists()


def test_names_that_are_not_utf8_and_names_that_mean_something(run, tmp_path):
    photos = tmp_path / "photos"
    odd = [os.fsdecode(b"caf\xe9.png"), "<b>&.png", 'quo"te.png', "new\nline.png", "日本.png"]
    odd += ["x" * 246 + ".png", "per%20cent?#.png", "back\\slash.png", " .png", "-rf.png"]
    for name in odd:
        save_photo(photos / name)
    code, _, summary = run(photos)
    assert code == 0
    assert sorted(summary["images"]) == sorted(name[:-4] for name in odd)
    for name in odd:
        assert (tmp_path / "out" / "labels" / name).is_file()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<b>&" not in page
    assert "caf\ufffd" in page
    assert b"caf\xe9" in (tmp_path / "out" / "areas.csv").read_bytes()
    assert "10 of 10 images are done already" in run(photos)[1]


def test_three_images_give_three_label_maps(run, tmp_path):
    for i, name in enumerate(("a.jpg", "a.png", "a.jpg.jpg")):
        save_photo(tmp_path / "photos" / name, 40 + i)
    code, _, summary = run(tmp_path / "photos")
    assert code == 0
    assert len(set(summary["images"])) == 3
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--max_pixels 0", "--max_pixels must be at least 1, got 0"),
        ("--resize 0", "--resize must be at least 1, got 0"),
        ("--resize -3", "--resize must be at least 1, got -3"),
        ("--tile 1", "--tile must be at least 2, got 1"),
        ("--tile -1024", "--tile must be at least 2, got -1024"),
        ("--overlap 0", "--overlap must be at least 1, got 0"),
        ("--overlap 1024", "--overlap must be from 1 to 1023, which is --tile less 1, got 1024"),
        (
            "--tile 256",
            "--overlap must be from 1 to 255, which is --tile less 1, got 256, the default",
        ),
        ("--names a.yaml --matching b.json", "--names and --matching both name the categories"),
    ],
)
def test_settings_out_of_range(tmp_path, monkeypatch, capsys, args, message):
    """Before anything is read: neither the model nor the photographs are there."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", "no.ckpt", "nowhere", *args.split()]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(5, 1000), (1000, 5), (1, 1)])
@pytest.mark.parametrize("large", ["tile", "reduce"])
def test_every_shape_is_segmented_and_every_picture_bounded(run, tmp_path, size, large):
    save_photo(tmp_path / "photos" / "a.png", *size)
    args = ("--tile", 128, "--overlap", 32, "--large", large)
    code, _, _ = run(tmp_path / "photos", *args)
    assert code == 0
    out = tmp_path / "out"
    assert Image.open(out / "labels" / "a.png").size == size
    for path in out.rglob("*.[jp]*g"):
        with Image.open(path) as picture:
            assert max(picture.size) <= max(4096, *size), path
    with Image.open(out / "contact_sheet.jpg") as sheet:
        assert max(sheet.size) < 3000


def test_pages_and_frames_are_named_as_not_used(run, tmp_path):
    pictures = [Image.new("RGB", (20, 20), (40 * i, 0, 0)) for i in range(4)]
    (tmp_path / "photos").mkdir()
    for name, count in (("a.gif", 2), ("b.tif", 4)):
        path = tmp_path / "photos" / name
        pictures[0].save(path, save_all=True, append_images=pictures[1:count])
    _, _, summary = run(tmp_path / "photos")
    assert summary["not_used"]["parts"] == {"a": "frame 2 not used", "b": "pages 2 to 4 not used"}


def test_the_network_sees_images_as_in_training_unless_told(checkpoint, tmp_path):
    save_photo(tmp_path / "photos" / "a.png", 80, 80)
    for resize, seen in ((None, (40, 40)), (24, (24, 24))):
        out = tmp_path / f"{resize}"
        predict(checkpoint, [str(tmp_path / "photos")], str(out), Settings(resize=resize))
        line = json.loads((out / "predictions.jsonl").read_text().splitlines()[1])
        assert tuple(line["seen"]) == seen


def test_the_aux_head_and_confidence(run, tmp_path):
    save_photo(tmp_path / "photos" / "a.png")
    code, _, summary = run(tmp_path / "photos", "--head", "aux", "--confidence", "true")
    assert code == 0
    assert len(summary["categories"]) == 6
    with Image.open(tmp_path / "out" / "confidence" / "a.png") as sure:
        assert (sure.size, sure.mode) == ((50, 40), "L")
        assert np.asarray(sure).min() >= 255 // 6  # the greatest of six shares
    model = save_segmenter(tmp_path / "single.ckpt", aux_classes=None)
    code, said, _ = run(tmp_path / "photos", "--head", "aux", output="none", model=model)
    assert code == 1
    assert "--head aux: the model has no over-clustering head" in said


def test_other_forms_can_be_asked_for_afterwards(run, tmp_path):
    save_photo(tmp_path / "photos" / "a.png")
    run(tmp_path / "photos")
    code, said, _ = run(tmp_path / "photos", "--format", "coco", "labelme")
    assert code == 0
    assert "1 of 1 images are done already" in said
    assert "coco.json, labelme/" in said
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert sum(each["area"] for each in content["annotations"]) == 50 * 40
    assert (tmp_path / "out" / "labelme" / "a.json").is_file()


def test_names_merge_and_drop(run, tmp_path):
    save_photo(tmp_path / "photos" / "a.png")
    run(tmp_path / "photos")
    plain = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))
    template = (tmp_path / "out" / "names.yaml").read_text()
    assert re.search(r"  2: category 2  # \d+\.\d % of an image", template)
    names = tmp_path / "names.yaml"
    names.write_text(
        'categories:\n  2: {name: sky & sea, colour: "#010203"}\n  0: null\n  1: sky & sea\n'
    )
    code, _, summary = run(tmp_path / "photos", "--names", names, output="named")
    assert code == 0
    assert summary["categories"] == ["sky & sea"]
    labels = np.asarray(Image.open(tmp_path / "named" / "labels" / "a.png"))
    assert np.array_equal(labels, np.where(plain == 0, 255, 0))
    assert summary["image_shares"] == [pytest.approx((plain != 0).mean())]
    painted = np.asarray(Image.open(tmp_path / "named" / "thumbnails" / "a.png").convert("RGB"))
    assert (painted[labels == 0] == [1, 2, 3]).all()
    rows = list(csv.reader((tmp_path / "named" / "areas.csv").open()))
    assert int(rows[1][4]) == (plain == 0).sum()
    names.write_text("categories: {7: sky}")
    code, said, _ = run(tmp_path / "photos", "--names", names, output="wrong")
    assert "names categories 7; the model has 0 to 2" in said


def test_reading_and_writing_beside_gives_the_same(checkpoint, tmp_path, monkeypatch):
    for i in range(3):
        save_photo(tmp_path / "photos" / f"{i}.png", seed=i)
    for name, limit in (("ahead", 1 << 24), ("one", 0)):
        monkeypatch.setattr(command, "_BESIDE", limit)
        predict(checkpoint, [str(tmp_path / "photos")], str(tmp_path / name))
    one, ahead = (
        [(path.name, path.read_bytes()) for path in sorted((tmp_path / name / "labels").iterdir())]
        for name in ("one", "ahead")
    )
    assert one == ahead
    shutil.rmtree(tmp_path / "one")


# What labels have taught


def test_a_transfer_can_be_used(run, tmp_path, monkeypatch, capfd):
    """Predicted, scored on its own labelled images, and exported."""
    monkeypatch.chdir(tmp_path)
    val = save_labelled(tmp_path / "val")
    model = save_transfer(tmp_path / "last.ckpt", val)
    code, _, summary = run(tmp_path / "val" / "images", model=model)
    assert code == 0
    assert summary["categories"] == ["sky", "road", "car"]
    assert "learned from labels" in summary["protocol"]["categories"]
    code, said, _ = run(tmp_path / "val" / "images", "--head", "aux", model=model, output="none")
    assert "was trained with labels, and has one head" in said

    arguments = ["--trainer.accelerator", "cpu", "--output", "scored"]
    assert cli.main(["validate", "--ckpt_path", str(model), *arguments]) == 0
    scores = json.loads(Path("scored/validation/scores.json").read_text())
    assert scores["assignment"] == [0, 1, 2]
    assert "the model has learned these classes" in scores["protocol"]["matching"]
    hits = total = 0
    for name in ("0", "1"):
        labels, found = (
            np.asarray(Image.open(folder / f"{name}.png"))
            for folder in (tmp_path / "val" / "labels", tmp_path / "out" / "labels")
        )
        hits, total = hits + (labels == found).sum(), total + labels.size
    assert scores["accuracy"] == pytest.approx(hits / total)
    wrong = save_transfer(tmp_path / "wrong.ckpt", val, ("sky", "road", "bus"))
    assert cli.main(["validate", "--ckpt_path", str(wrong), *arguments]) == 1
    assert "has learned other classes (sky, road, bus)" in capfd.readouterr().err

    args = ["--format", "torch", "--size", "[64, 64]", "--any_size", "false"]
    assert cli.main(["export", str(model), *args]) == 0
    program = torch.export.load("outputs/export/last.pt2")
    logits, labels = program.module()(torch.rand(2, 3, 64, 64))
    wide = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(wide.argmax(1), labels)
    assert json.loads(Path("outputs/export/last.json").read_text())["names"][2] == "car"


def test_exports_and_validations_take_names(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("names.yaml").write_text("categories: {0: sky, 1: null, 2: car}")
    args = ["--format", "torch", "--size", "[64, 64]", "--any_size", "false"]
    for name, more in (("plain", []), ("named", ["--names", "names.yaml"])):
        output = ["--output", f"{name}.pt2"]
        assert cli.main(["export", str(checkpoint), *args, *output, *more]) == 0
    image = torch.rand(2, 3, 64, 64)
    plain, named = (
        torch.export.load(f"{name}.pt2").module()(image)[1] for name in ("plain", "named")
    )
    assert torch.equal(named, torch.tensor([0, 255, 1])[plain])
    names = json.loads(Path("named.json").read_text())
    assert (names["names"], names["void"]) == (["sky", "car"], 255)
    assert not Path("plain.json").exists()

    val = save_labelled(tmp_path / "val")
    config = {
        "model": {**MODEL, "region_start": 0},
        "data": {"val": val},
        "output": "scored",
        "trainer": {"accelerator": "cpu"},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    validate = ["validate", "--config", "config.yaml", "--ckpt_path", str(checkpoint)]
    assert cli.main([*validate, "--matching", "names.yaml"]) == 0
    scores = json.loads(Path("scored/validation/scores.json").read_text())
    assert scores["assignment"] == [0, -1, 2]
    assert scores["protocol"]["matching"] == "by the names in names.yaml"
    Path("other.yaml").write_text("categories: {0: moon}")
    assert cli.main([*validate, "--matching", "other.yaml"]) == 1
    assert "gives no category the name of a class" in capsys.readouterr().err
