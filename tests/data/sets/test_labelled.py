import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from densesiam.data import ClassTable, Draw, Evaluation, LabelledImages, to_image
from tests.data.support import noise, save_images

TABLE = ClassTable(
    ["sky", "building", "pole", "car"],
    void=[11],
    colours=[(0, 0, 255), (90, 90, 90), (70, 70, 70), (255, 0, 0)],
    things=["car"],
)
GROUPS = {"vehicle": ["car"], "construction": ["building", "pole"]}


@pytest.fixture
def folders(tmp_path):
    for i, name in enumerate(["a/x", "y"]):
        for kind, suffix in (("images", ".jpg"), ("labels", ".png")):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                noise(6, 4, seed=i).save(tmp_path / kind / f"{name}{suffix}")
            else:
                values = np.array([0, 1, 2, 3, 11, 255], np.uint8).repeat(4).reshape(6, 4).T
                Image.fromarray(np.ascontiguousarray(values)).save(
                    tmp_path / kind / f"{name}{suffix}"
                )
    return tmp_path / "images", tmp_path / "labels"


def test_classes_and_void(folders):
    data = LabelledImages(*folders, TABLE)
    assert len(data) == 2
    assert data[0]["label"].tolist() == [[0, 1, 2, 3, 255, 255]] * 4
    assert data[1]["index"].item() == 1
    assert data.classes is TABLE
    assert data.classes.thing_classes == [3]


def test_groups(folders):
    data = LabelledImages(*folders, TABLE, ignore_index=-1, groups=GROUPS, transform=Evaluation())
    with pytest.raises(
        ValueError, match=r"a/x\.png: label values outside the class table: \[255\]"
    ):
        data[0]  # 255 is void only as the ignore_index
    data = LabelledImages(*folders, TABLE, groups=GROUPS)
    assert data[0]["label"].tolist() == [[255, 1, 1, 0, 255, 255]] * 4
    assert list(data.classes.names) == ["vehicle", "construction"]
    assert data.classes.colours == [(255, 0, 0), (90, 90, 90)]
    assert data.classes.thing_classes == [0]


def test_label_values_that_are_not_class_numbers(folders):
    table = ClassTable(["a", "b"], values={0: 1, 1: 1, 2: 0}, void=[3, 11])
    assert LabelledImages(*folders, table)[0]["label"][0].tolist() == [1, 1, 0, 255, 255, 255]


def test_values_outside_the_table_are_named(folders):
    data = LabelledImages(*folders, ClassTable(["sky", "building"]))
    with pytest.raises(ValueError, match=r"x\.png: .*table: \[2, 3, 11\]; it knows \[0, 1, 255\]"):
        data[0]
    wide = np.full((4, 6), 256, np.uint16)  # would be 0 if it were cut to eight bits
    Image.fromarray(wide).save(folders[1] / "y.png")
    with pytest.raises(ValueError, match=r"y\.png: .*\[256\]"):
        data[1]
    Image.fromarray(np.full((4, 6), 70000, np.int32)).save(folders[1] / "y.tif")
    (folders[1] / "y.png").unlink()
    with pytest.raises(ValueError, match=r"y\.tif: .*\[70000\]"):
        LabelledImages(*folders, TABLE)[1]


def test_sizes_have_to_agree(folders):
    Image.new("L", (4, 6)).save(folders[1] / "y.png")
    with pytest.raises(ValueError, match=r"labels/y\.png is 4 x 6 .*images/y\.jpg is 6 x 4"):
        LabelledImages(*folders, TABLE)[1]


def test_unmatched_files_are_named(folders):
    images, labels = folders
    noise(6, 4).save(images / "z.png")
    with pytest.raises(ValueError, match=r"images without a label: .*z\.png"):
        LabelledImages(images, labels, TABLE)
    (images / "z.png").unlink()
    (images / "y.jpg").unlink()
    with pytest.warns(UserWarning, match=r"labels without an image, not used: .*y\.png"):
        assert len(LabelledImages(images, labels, TABLE)) == 1
    noise(6, 4).save(images / "a" / "x.png")
    with pytest.raises(ValueError, match=r"two files of one name: .*x\.jpg and .*x\.png"):
        LabelledImages(images, labels, TABLE)


def test_long_lists_of_files_are_cut(folders):
    for i in range(8):
        noise(6, 4).save(folders[0] / f"z{i}.png")
    with pytest.raises(ValueError, match=r"z4\.png and 3 more$"):
        LabelledImages(*folders, TABLE)


def test_suffixes(folders):
    images, labels = folders
    (images / "y.jpg").rename(images / "y_rgb.jpg")
    (images / "a" / "x.jpg").rename(images / "a" / "x_rgb.jpg")
    (labels / "y.png").rename(labels / "y_ids.png")
    (labels / "a" / "x.png").rename(labels / "a" / "x_ids.png")
    Image.new("RGB", (6, 4)).save(labels / "y_colour.png")
    data = LabelledImages(images, labels, TABLE, image_suffix="_rgb", label_suffix="_ids")
    assert [label.name for _, label in data.paths] == ["x_ids.png", "y_ids.png"]
    with pytest.raises(ValueError, match=r"no image in .* has a name that ends in '_left'"):
        LabelledImages(images, labels, TABLE, image_suffix="_left")


def test_repetitions_that_fill_up_a_share_do_not_count(folders):
    data = LabelledImages(*folders, TABLE)
    assert torch.equal(data[Draw(1)]["label"], data[1]["label"])
    assert (data[Draw(1, repetition=1)]["label"] == 255).all()


def test_too_small_images_are_named(folders):
    data = LabelledImages(*folders, TABLE, transform=Evaluation(crop=64))
    with pytest.raises(ValueError, match=r"x\.png: a centre crop of 64 pixels does not fit"):
        data[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassTable([]), "needs names that differ"),
        (lambda: ClassTable(["a", "a"]), "needs names that differ"),
        (lambda: ClassTable(["a"], colours=[]), "1 classes, but 0 colours"),
        (lambda: ClassTable(["a"], things=["b"]), "things that are no class: b"),
        (lambda: ClassTable(["a", "b"], values={5: 0}), r"missing or beyond: \[1\]"),
        (lambda: ClassTable(["a"], values={5: 0, 6: 1}), r"missing or beyond: \[1\]"),
        (lambda: ClassTable(["a"], void=[0]), r"both a class and void: \[0\]"),
        (lambda: ClassTable(["a"], label_colours=[(1, 2)]), "three levels from 0 to 255"),
        (lambda: ClassTable(["a"], label_colours=[(1, 2, 3)] * 2), "has a colour twice"),
        (lambda: ClassTable(["a"], label_colours=[(0, 0, 0), (1, 2, 3)]), r"beyond: \[1\]"),
        (lambda: TABLE.grouped({"g": ["tree"]}), "'tree', which is no class; the classes are sky"),
        (lambda: TABLE.grouped({"g": ["sky"], "h": ["sky"]}), "class 'sky' is in two groups"),
        (lambda: TABLE.grouped({"g": []}), "group 'g' holds no class"),
        (lambda: TABLE.grouped({"g": ["sky", "car"]}), "group 'g' holds both things and stuff"),
    ],
)
def test_bad_tables(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_ignore_index(folders):
    with pytest.raises(ValueError, match="ignore_index=3 is also a class"):
        LabelledImages(*folders, TABLE, ignore_index=3)
    with pytest.raises(ValueError, match=r"label values must be from 0 to 65535, got \[-1\]"):
        LabelledImages(*folders, ClassTable(["a"], void=[-1]))


def test_labels_of_colours_in_the_class_table(tmp_path):
    colours = [(70, 130, 180), (128, 64, 128), (0, 0, 142), (0, 0, 0)]
    numbers = np.random.default_rng(0).integers(0, 4, (4, 6))
    save_images(tmp_path / "images", [(6, 4)])
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.array(colours, np.uint8)[numbers]).save(tmp_path / "labels" / "0.png")
    table = ClassTable(["sky", "road", "car"], void=[3], label_colours=colours)
    folders = tmp_path / "images", tmp_path / "labels"
    expected = np.where(numbers == 3, 255, numbers)
    assert np.array_equal(LabelledImages(*folders, table)[0]["label"].numpy(), expected)
    grouped = LabelledImages(*folders, table, groups={"ground": ["road", "car"]})[0]["label"]
    assert np.array_equal(grouped.numpy(), np.choose(numbers, [255, 0, 0, 255]))


@pytest.fixture
def turned(tmp_path):
    """A photograph with an EXIF rotation, and what its label is."""
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn: sizes do not tell
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    photo = noise(6, 4)
    photo.save(tmp_path / "images" / "0.png", exif=exif)
    label = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    return tmp_path, photo, label, exif


def test_labels_of_turned_photographs(turned):
    root, photo, label, exif = turned
    folders = root / "images", root / "labels"
    table = ClassTable(["a", "b", "c"])
    Image.fromarray(label).save(root / "labels" / "0.png")
    stored, upright = np.asarray(photo), np.asarray(photo)[::-1, ::-1]

    def found(**arguments):
        item = LabelledImages(*folders, table, **arguments)[0]
        return np.asarray(to_image(item["image"])), item["label"].numpy()

    with pytest.warns(UserWarning, match="has an EXIF rotation and its label has none"):
        pixels, values = found()
    assert np.array_equal(pixels, upright)
    assert np.array_equal(values, label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, values = found(exif="stored")
        assert np.array_equal(pixels, stored)
        assert np.array_equal(values, label)
        Image.fromarray(label).save(root / "labels" / "0.png", exif=exif)
        pixels, values = found()  # turned alike
    assert np.array_equal(pixels, upright)
    assert np.array_equal(values, label[::-1, ::-1])
    exif[0x0112] = 6  # a quarter
    photo.save(root / "images" / "0.png", exif=exif)
    Image.fromarray(label).save(root / "labels" / "0.png")
    with pytest.raises(ValueError, match=r"after its EXIF rotation; .* set `exif: stored`"):
        found()
    with pytest.raises(ValueError, match='exif must be "upright" or "stored"'):
        found(exif="none")
