"""Published data sets in their own layouts, down to the command that trains and scores on them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from densesiam import cli
from densesiam.data import (
    Cityscapes27,
    CityscapesImages,
    CocoImages,
    CocoStuff27,
    Evaluation,
    FolderImages,
    VocImages,
    VocSegmentation,
)
from densesiam.data.sets.classes import known_table
from densesiam.data.sets.layout import draw_tree, read_names
from tests.data.sets.published import write_cityscapes, write_coco, write_voc
from tests.data.support import save_images

SHARED = Path(__file__).parents[4] / "shared" / "data"
SIZE = (48, 56)


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco")


@pytest.fixture
def cityscapes(tmp_path):
    return write_cityscapes(tmp_path / "cityscapes")


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path)


def classes_at(item, *places):
    return [item["label"][place].item() for place in places]


LEFT, RIGHT, CORNER, BORDER = (20, 5), (5, 40), (40, 50), (0, 0)


# The tables


def needs(name):
    return pytest.mark.skipif(
        not (SHARED / name).is_file(), reason=f"needs {name}, which is kept beside the repository"
    )


@needs("coco_stuff27.json")
def test_coco_table_is_the_protocols():
    published = json.loads((SHARED / "coco_stuff27.json").read_text())
    table = known_table("coco_stuff27")
    assert list(table.names) == published["names"]
    assert table.class_of == dict(enumerate(published["fine_to_coarse"]))
    assert table.thing_classes == published["things"]


@needs("cityscapes27.json")
def test_cityscapes_table_is_the_protocols():
    published = json.loads((SHARED / "cityscapes27.json").read_text())["label_id_to_class"]
    table = known_table("cityscapes27")
    assert table.class_of == {int(k): c for k, c in published.items() if c >= 0}
    assert {*table.void, -1} == {int(k) for k, c in published.items() if c < 0}


def test_tables_have_a_class_for_each_value_and_things():
    sizes = {"coco_stuff27": (27, 182, 12), "cityscapes27": (27, 27, 10), "voc": (21, 21, 20)}
    for name, (classes, values, things) in sizes.items():
        table = known_table(name)
        assert len(table.names) == classes
        assert len(table.class_of) == values
        assert len(table.things) == things


# COCO-Stuff


def test_coco(coco):
    data = CocoStuff27(coco, transform=Evaluation(resize=48))
    assert len(data) == 3
    assert data.classes.names[9] == "person-things"
    for item in data:
        assert classes_at(item, LEFT, RIGHT, CORNER, BORDER) == [9, 22, 23, 255]
    assert data.description == "COCO-Stuff-27, val2017: all 3 images (the usual list has 2,175)"
    assert len(CocoImages(coco).paths) == 4


def test_curated_lists_decide_images_and_order(coco):
    names = coco / "curated_val.txt"
    data = CocoStuff27(coco, names=names)
    assert [image.stem for image, _ in data.paths] == ["000000000632", "000000000139"]
    assert all(image.stem == label.stem for image, label in data.paths)
    assert f"{names}, 2 images (the usual list has 2,175)" in data.description
    images = CocoImages(coco, names=coco / "curated_train.txt")
    assert [path.name[-6:] for path in images.paths] == ["09.jpg", "30.jpg", "34.jpg"]
    names.write_text("val2017/000000000285.jpg\n\n# a remark\n")  # as others write lists
    assert len(CocoStuff27(coco, names=names)) == 1


def test_coco_as_others_unpack_it(coco):
    (coco / "annotations").rename(coco / "stuffthingmaps")
    for split in ("train2017", "val2017"):
        (coco / "images" / split).rename(coco / split)
    assert len(CocoStuff27(coco)) == 3
    assert len(CocoImages(coco).paths) == 4


def test_lists_that_do_not_fit(coco):
    (coco / "curated_val.txt").write_text("000000000139\n000000000001\n")
    with pytest.raises(ValueError, match=r"1 of the 2 images .* not in .*val2017: 000000000001"):
        CocoStuff27(coco, names=coco / "curated_val.txt")
    (coco / "curated_val.txt").write_text("000000000139\n000000000139\n")
    with pytest.raises(ValueError, match="names some twice: 000000000139"):
        CocoStuff27(coco, names=coco / "curated_val.txt")
    (coco / "curated_val.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty: expected one name a line"):
        read_names(coco / "curated_val.txt")
    with pytest.raises(FileNotFoundError, match=r"no list of images .*nowhere\.txt"):
        CocoStuff27(coco, names=coco / "nowhere.txt")


def test_missing_coco_files(coco):
    (coco / "annotations" / "val2017" / "000000000139.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images of val2017 have no label: 0+139\.jpg"):
        CocoStuff27(coco)
    shutil.rmtree(coco / "annotations" / "val2017")
    with pytest.raises(FileNotFoundError) as error:
        CocoStuff27(coco)
    assert str(error.value).splitlines() == [
        "COCO-Stuff: no folder annotations/val2017 or stuffthingmaps/val2017 or "
        f"annotations/stuffthingmaps/val2017 in {coco}. Expected:",
        str(coco),
        "├── images",
        "│   ├── train2017/000000000009.jpg ...",
        "│   └── val2017/000000000139.jpg ...",
        "└── annotations",
        "    ├── train2017/000000000009.png ...",
        "    └── val2017/000000000139.png ...   <- missing",
    ]


# Cityscapes


def test_cityscapes(cityscapes):
    data = Cityscapes27(cityscapes)
    assert len(data) == 2
    for item in data:
        assert tuple(item["label"].shape) == SIZE
        assert classes_at(item, LEFT, RIGHT, CORNER, BORDER) == [0, 17, 16, 255]
    assert "val: 2 images (the ordinary validation split" in data.description
    assert len(Cityscapes27(cityscapes, "train")) == 3


def test_cityscapes_after_picie_is_labelled_so(cityscapes):
    data = Cityscapes27(cityscapes, "train+val")
    assert len(data) == 5
    assert "train+val: 5 images (PiCIE's protocol, whose models train on" in data.description
    training = CityscapesImages(cityscapes)
    assert [path.name.split("_")[0] for path in training.paths] == ["berlin"] * 2 + ["augsburg"] * 2
    assert not {image for image, _ in data.paths} & set(training.paths)
    ordinary = CityscapesImages(cityscapes, ["train"])
    assert len(ordinary.paths) == 3


def test_missing_cityscapes_files(cityscapes):
    label = cityscapes / "gtFine/val/frankfurt/frankfurt_000001_000019_gtFine_labelIds.png"
    label.unlink()
    with pytest.raises(FileNotFoundError) as error:
        Cityscapes27(cityscapes)
    said = str(error.value)
    assert f"1 images have no label: {label.relative_to(cityscapes)} not in {cityscapes}" in said
    assert "    └── val/CITY/*_gtFine_labelIds.png   <- missing" in said
    assert said.count("<- missing") == 1
    with pytest.raises(ValueError, match="split must be one of val, train, train\\+val, got 'all'"):
        Cityscapes27(cityscapes, "all")
    with pytest.raises(ValueError, match=r"some of train, val, test, train_extra, got \['extra'\]"):
        CityscapesImages(cityscapes, ["extra"])


@pytest.mark.parametrize(("given", "meant"), [("cityscapes/gtFine", "cityscapes"), ("", None)])
def test_a_root_too_high_or_too_low_is_corrected(cityscapes, given, meant):
    root = cityscapes.parent / given
    with pytest.raises(FileNotFoundError) as error:
        Cityscapes27(root)
    better = cityscapes.parent / (meant or "cityscapes")
    assert f"but in {better}: give that as `root`" in str(error.value)


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"which is no folder itself\. Expected:"):
        Cityscapes27(tmp_path / "nowhere")


# Pascal VOC


def test_voc(voc):
    data = VocSegmentation(voc)
    assert [image.stem for image, _ in data.paths] == ["2007_000033", "2007_000042"]
    assert Image.open(data.paths[0][1]).mode == "P"
    for item in data:
        assert classes_at(item, LEFT, RIGHT, CORNER, BORDER) == [0, 15, 1, 255]
    assert data.description == "Pascal VOC (VOC2012), val: 2 images"
    assert len(VocSegmentation(voc, "trainval")) == 4
    assert len(VocImages(voc).paths) == 5
    assert len(VocImages(voc, "Segmentation/train").paths) == 2


def test_missing_voc_files(voc):
    with pytest.raises(FileNotFoundError, match=r"no list ImageSets/Segmentation/all\.txt in"):
        VocSegmentation(voc, "all")
    with pytest.raises(FileNotFoundError, match=rf"but in {voc}: give that as `root`"):
        VocSegmentation(voc.parents[1])
    (voc / "SegmentationClass" / "2007_000042.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 listed images have no SegmentationClass"):
        VocSegmentation(voc)


# Any folder


def test_a_list_restricts_a_folder(tmp_path):
    folder = save_images(tmp_path / "photos", [(8, 8)] * 3)
    save_images(folder / "deep", [(8, 8)] * 2)
    names = tmp_path / "names.txt"
    names.write_text("deep/1\n2.png\n")
    paths = FolderImages(folder, names).paths
    assert [path.relative_to(folder).as_posix() for path in paths] == ["deep/1.png", "2.png"]
    assert len(FolderImages(folder).paths) == 5


def test_trees():
    drawn = draw_tree("root", ["a/b/1", "a/b/2", "a/c/3", "d"], ["a/b", "d"])
    assert drawn.splitlines() == [
        "root",
        "├── a",
        "│   ├── b   <- missing",
        "│   │   ├── 1",
        "│   │   └── 2",
        "│   └── c/3",
        "└── d   <- missing",
    ]


# End to end


def train_and_score(tmp_path, capsys, train, val, classes):
    """Fit a tiny model on one part of a data set, score it on another, and read what came of it."""
    config = {
        "output": str(tmp_path / "run"),
        "model": {
            "num_classes": classes,
            "aux_classes": None,
            "hidden_channels": 8,
            "channels": 8,
            "backbone": "test_resnet",
            "strides": [4, 8],
            "region_weight": 0.0,
        },
        "data": {
            "train": train,
            "views": {
                "class_path": "SegmentationViews",
                "init_args": {"size": 32, "resize": 32, "crop": None},
            },
            "val": val,
            "batch_size": 2,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    assert cli.main(["fit", "--config", str(path)]) == 0, capsys.readouterr().err
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert saved["train"]["class_path"].endswith(train["class_path"])
    assert saved["val"]["class_path"].endswith(val["class_path"])
    again = ["validate", "--config", str(tmp_path / "run" / "config.yaml"), "--ckpt_path", "last"]
    assert cli.main(again) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_coco_from_config_to_scores(coco, tmp_path, capsys):
    train = {"split": "train", "names": str(coco / "curated_train.txt")}
    val = {"names": str(coco / "curated_val.txt"), "transform": {"resize": 32, "crop": 32}}
    said = train_and_score(
        tmp_path,
        capsys,
        {"class_path": "CocoImages", "init_args": {"root": str(coco), **train}},
        {"class_path": "CocoStuff27", "init_args": {"root": str(coco), **val}},
        27,
    )
    assert "person-things" in said
    assert "stuff" in said


def test_cityscapes_from_config_to_scores(cityscapes, tmp_path, capsys):
    said = train_and_score(
        tmp_path,
        capsys,
        {"class_path": "CityscapesImages", "init_args": {"root": str(cityscapes)}},
        {
            "class_path": "Cityscapes27",
            "init_args": {"root": str(cityscapes), "split": "train+val"},
        },
        27,
    )
    assert "guard rail" in said


def test_voc_from_config_to_scores(voc, tmp_path, capsys):
    said = train_and_score(
        tmp_path,
        capsys,
        {"class_path": "VocImages", "init_args": {"root": str(voc)}},
        {"class_path": "VocSegmentation", "init_args": {"root": str(voc)}},
        21,
    )
    assert "aeroplane" in said


def test_a_misplaced_data_set_is_a_plain_error(tmp_path, capsys):
    voc = write_voc(tmp_path)
    config = tmp_path / "tiny.yaml"
    train = {"class_path": "VocImages", "init_args": {"root": str(voc.parent)}}
    config.write_text(yaml.safe_dump({"data": {"train": train}}))
    assert cli.main(["fit", "--config", str(config), "--output", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("densesiam: error: Pascal VOC: no folder JPEGImages in")
    assert f"but in {voc}: give that as `root`" in said
    assert "├── JPEGImages/2007_000032.jpg ...   <- missing" in said
    assert "Traceback" not in said


def test_labels_come_through_resizing_unmixed(coco):
    item = CocoStuff27(coco, transform=Evaluation(resize=320, crop=320))[0]
    assert set(np.unique(item["label"])) == {9, 22, 23, 255}
    assert item["image"].shape == (3, 320, 320)
    assert item["image"].dtype == torch.float32
