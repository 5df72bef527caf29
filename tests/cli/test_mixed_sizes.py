"""Photographs of several sizes and both orientations in one labelled set, several in a batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from densesiam import cli
from densesiam.data import ClassTable, Evaluation, LabelledImages
from densesiam.evaluation.baselines import ColourPosition, KMeans, settle_statistics
from densesiam.models import Encoder
from tests.cli.predicting import MODEL, save_labelled, save_segmenter, save_transfer
from tests.training.children import run_together

# Width and height, as they are shown.
SIZES = ((48, 40), (40, 48), (48, 40), (40, 56), (40, 48), (48, 40), (33, 37))
TURNED = 4  # the photograph that its file holds lying on its side


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The settings of such a set; one photograph stands by its EXIF orientation alone."""
    root = tmp_path_factory.mktemp("mixed")
    settings = save_labelled(root, SIZES)
    photo = root / "images" / f"{TURNED}.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(
        photo.with_suffix(".jpg"), exif=exif, quality=95
    )
    photo.unlink()
    return settings


def test_sizes_are_known_from_the_heads_of_files(labelled):
    folders = [labelled["init_args"][kind] for kind in ("images", "labels")]
    for transform in (
        Evaluation(),
        Evaluation(resize=20),
        Evaluation(resize=20, full_size_labels=True),
        Evaluation(resize=24, crop=20),
        Evaluation(resize=24, crop=20, full_size_labels=True),
    ):
        data = LabelledImages(*folders, ClassTable(["a", "b", "c"]), transform=transform)
        with pytest.warns(UserWarning, match="has an EXIF rotation and its label has none"):
            items = [data[i] for i in range(len(data))]
        found = [(i["image"].shape[1:], i["label"].shape) for i in items]
        assert [data.shape(i) for i in range(len(data))] == found
    stored = LabelledImages(*folders, ClassTable(["a", "b", "c"]), exif="stored")
    width, height = SIZES[TURNED]
    assert stored.shape(TURNED)[0] == (width, height)


def scores(folder, kind="scores.json"):
    return json.loads((folder / kind).read_text())


@pytest.mark.filterwarnings("ignore:.*has an EXIF rotation:UserWarning")
@pytest.mark.parametrize("full", [False, True])
def test_validate(labelled, tmp_path, monkeypatch, full):
    monkeypatch.chdir(tmp_path)
    checkpoint = save_segmenter(tmp_path / "last.ckpt")
    # 25 pixels of side make labels of one size from images of several, or the reverse.
    val = json.loads(json.dumps(labelled))
    val["init_args"]["transform"] = {"resize": 25, "full_size_labels": full}
    Path("config.yaml").write_text(
        yaml.safe_dump({
            "model": {**MODEL, "region_start": 0}, "data": {"val": val},
            "trainer": {"accelerator": "cpu"},
        })
    )  # fmt: skip
    args = ["validate", "--config", "config.yaml", "--ckpt_path", str(checkpoint)]
    for size in (1, 2, 32):
        assert cli.main([*args, "--output", str(size), "--data.val_batch_size", str(size)]) == 0
    single = scores(tmp_path / "1" / "validation")
    pixels = np.sum(single["confusion"])
    if full:
        assert pixels == sum(width * height for width, height in SIZES)
    for size in ("2", "32"):
        several = scores(tmp_path / size / "validation")
        assert several["confusion"] == single["confusion"]
        pages = [tmp_path / name / "validation" / "report.html" for name in ("1", size)]
        assert all(page.is_file() for page in pages)


@pytest.mark.filterwarnings("ignore:.*has an EXIF rotation:UserWarning")
def test_two_processes(labelled, tmp_path, monkeypatch):
    """Each image counts once, whichever process scores it, and with whichever others."""
    monkeypatch.chdir(tmp_path)
    val = json.loads(json.dumps(labelled))
    val["init_args"]["transform"] = {"resize": 25, "full_size_labels": True}
    views = {"class_path": "SegmentationViews", "init_args": {"size": 16, "resize": 25}}
    views["init_args"]["crop"] = None
    data = {"train": val["init_args"]["images"], "val": val, "views": views, "batch_size": 2}
    trainer = {"accelerator": "cpu", "max_epochs": 1}
    content = {"model": {**MODEL, "region_start": 0}, "data": data, "trainer": trainer}
    Path("config.yaml").write_text(yaml.safe_dump(content))
    args = ["--config", "config.yaml"]
    two = ["--trainer.devices", "2", "--data.val_batch_size", "2"]
    assert run_together(["fit", *args, *two, "--output", "run"], 2) == [0, 0]
    (epoch,) = scores(tmp_path / "run", "summary.json")["epochs"]
    args += ["--ckpt_path", "run/checkpoints/last.ckpt"]
    assert run_together(["validate", *args, *two, "--output", "two"], 2) == [0, 0]
    assert cli.main(["validate", *args, "--output", "one"]) == 0
    one, both = (scores(tmp_path / name / "validation") for name in ("one", "two"))
    assert np.sum(one["confusion"]) == sum(width * height for width, height in SIZES)
    assert both["confusion"] == one["confusion"]
    assert epoch["val/miou"] == pytest.approx(one["miou"])


@pytest.mark.filterwarnings("ignore:.*has an EXIF rotation:UserWarning")
@pytest.mark.parametrize("task", ["transfer segmentation", "probe segmentation", "probe knn"])
def test_transfer_and_probes(labelled, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    config = {"data": {"train": labelled, "val": labelled}}
    if task == "probe knn":
        config |= {"accelerator": "cpu", "knn": {"k": 3}}
        config["model"] = {"backbone": "test_resnet", "strides": [4]}
    else:
        config["model"] = {"backbone": "test_resnet", "strides": [4, 8], "max_steps": 2}
        config["data"] |= {"size": 32, "batch_size": 3}
        config["trainer"] = {"accelerator": "cpu"}
    if task == "transfer segmentation":
        config["model"] |= {"output_stride": 32, "fpn": True, "head": "linear"}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    args = [*task.split(), "--config", "config.yaml"]
    found = []
    for size in (1,) if task == "probe knn" else (1, 4):
        several = [] if size == 1 else ["--data.val_batch_size", str(size)]
        assert cli.main([*args, "--output", f"run{size}", *several]) == 0
        found.append(scores(tmp_path / f"run{size}", "results.json")["scores"])
    assert found[0] == found[-1]
    assert set(found[0]) == {"miou", "accuracy", "iou/sky", "iou/road", "iou/car"}


@pytest.mark.filterwarnings("ignore:.*has an EXIF rotation:UserWarning")
def test_what_labels_have_taught(labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_transfer(tmp_path / "last.ckpt", labelled)
    args = ["validate", "--ckpt_path", str(model), "--trainer.accelerator", "cpu"]
    for size in (1, 4):
        assert cli.main([*args, "--output", str(size), "--data.val_batch_size", str(size)]) == 0
    one, four = (scores(tmp_path / size / "validation") for size in "14")
    assert one["confusion"] == four["confusion"]


def test_baselines():
    images = [torch.rand(2, 3, height, width) for width, height in SIZES[:2]]
    kmeans = KMeans(ColourPosition(), 3, pixels_per_image=64).fit(images)
    assert [kmeans(batch).shape for batch in images] == [
        (2, 3, height, width) for width, height in SIZES[:2]
    ]
    encoder = Encoder("test_resnet", None, [8], fpn=False)
    before = encoder.backbone.bn1.running_mean.clone()
    settle_statistics(encoder, images)
    assert not torch.equal(encoder.backbone.bn1.running_mean, before)
