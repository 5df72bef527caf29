"""What other programs read of a prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from densesiam.reports.annotations import write_annotations
from densesiam.reports.naming import Categories
from densesiam.reports.record import Done


@pytest.fixture
def prediction(tmp_path):
    """Two label maps of three categories, one of which has pixels in none."""
    done = []
    rng = np.random.default_rng(0)
    for name, (height, width) in (("a", (30, 41)), ("b/c", (17, 9))):
        labels = np.kron(rng.integers(0, 3, (height, width)), np.ones((2, 2))).astype(np.uint8)
        if name == "a":
            labels[:5] = 255
        path = tmp_path / "out" / "labels" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        pixels = np.bincount(labels[labels < 3], minlength=4).tolist()
        size = labels.shape[::-1]
        photo = str(tmp_path / "photos" / f"{name}.jpg")
        done.append(Done(photo, name, (0, 0), size, (1, 1), 1, pixels, 0, 1.0))
    plain = Categories.plain(4)  # the last of which is nowhere
    return (
        tmp_path / "out",
        done,
        Categories(["sky", "<sea>", "日", "none"], plain.colours, plain.of),
    )


def labels_of(folder, name):
    with Image.open(folder / "labels" / f"{name}.png") as file:
        return np.asarray(file)


@pytest.mark.parametrize("form", ["coco", "coco-polygons"])
def test_pycocotools_reads_back_every_pixel(prediction, form, capsys):
    folder, done, categories = prediction
    assert write_annotations(folder, done, categories, [form]) == [f"{form}.json"]
    coco = COCO(folder / f"{form}.json")
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == categories.names
    for i, each in enumerate(done):
        (image,) = coco.loadImgs([i + 1])
        assert (image["file_name"], image["width"], image["height"]) == (each.path, *each.size)
        found = np.full(each.size[::-1], 255, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[i + 1])):
            mask = coco.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum()
            assert (found[mask] == 255).all()
            found[mask] = annotation["category_id"] - 1
        assert np.array_equal(found, labels_of(folder, each.name))


def test_labelme_has_polygons_and_finds_its_photograph(prediction):
    folder, done, categories = prediction
    assert write_annotations(folder, done, categories, ["labelme"]) == ["labelme/"]
    for each in done:
        path = folder / "labelme" / f"{each.name}.json"
        content = json.loads(path.read_text())
        assert (path.parent / content["imagePath"]).resolve() == Path(each.path).resolve()
        assert (content["imageWidth"], content["imageHeight"]) == each.size
        assert content["imageData"] is None
        # Drawn at four times the size, each pixel's centre tells which polygon it is in.
        drawn = Image.new("L", [4 * side for side in each.size], 255)
        for shape in content["shapes"]:
            assert shape["shape_type"] == "polygon"
            number = categories.names.index(shape["label"])
            area = Image.new("1", drawn.size)
            points = [(4 * x, 4 * y) for x, y in shape["points"]]
            ImageDraw.Draw(area).polygon(points, fill=1)
            drawn.paste(number, mask=area)
        centres = np.asarray(drawn)[2::4, 2::4]
        labels = labels_of(folder, each.name)
        inside = labels != 255
        # Pillow may draw the ways to holes, a pixel wide.
        assert (centres[inside] == labels[inside]).mean() > 0.9
