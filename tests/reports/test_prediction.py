"""The files of a prediction, and its pages in a browser."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densesiam.data.sets.gathered import Photo
from densesiam.methods.whole import Segmented
from densesiam.reports.naming import Categories
from densesiam.reports.prediction import PredictionWriter, Unused, typical_regions
from densesiam.reports.record import Record
from densesiam.reports.visualize import palette
from tests.browser import needs_browser, open_page
from tests.data.support import noise


def write(folder, categories, labels, names=("photo",), unused=None):
    """Predictions of photographs with these labels."""
    folder.mkdir()
    record = Record(folder)
    record.open({})
    writer = PredictionWriter(folder, categories, {"from": "<a folder>"}, record)
    photos = [Photo(Path(f"{name}.png"), name) for name in names]
    image = noise(labels.shape[1], labels.shape[0])
    certainty = np.ones(labels.shape, np.float32)
    found = Segmented(labels, None, labels, certainty, labels.shape, 1)
    for photo in photos:
        writer.add(photo, image, found, (0, 0))
    writer.finish(list(record.done.values()), unused or Unused())
    return folder


@pytest.mark.parametrize(("count", "mode"), [(256, "L"), (257, "I;16")])
def test_every_category_is_written_and_painted(tmp_path, count, mode):
    labels = np.arange(count, dtype=np.uint16 if count > 256 else np.uint8)
    folder = write(tmp_path / "out", Categories.plain(count), np.stack([labels] * 2))
    with Image.open(folder / "labels" / "photo.png") as written:
        assert written.mode == mode
        assert np.array_equal(np.asarray(written), [labels] * 2)
    with Image.open(folder / "thumbnails" / "photo.png") as painted:
        assert np.array_equal(np.asarray(painted)[0], palette(count))


def test_large_pictures_are_reduced_with_their_labels(tmp_path):
    labels = np.zeros((2, 9000), np.uint8)
    labels[:, 4500:] = 1
    folder = write(tmp_path / "out", Categories.plain(2), labels)
    with Image.open(folder / "labels" / "photo.png") as written:
        assert np.array_equal(np.asarray(written), labels)
    with Image.open(folder / "overlays" / "photo.jpg") as painted:
        assert painted.size == (4096, 1)
    with Image.open(folder / "thumbnails" / "photo.png") as painted:
        colours = np.asarray(painted.convert("RGB"))[0]
    assert np.array_equal(colours[:240], [palette(2)[0]] * 240)
    assert np.array_equal(colours[240:], [palette(2)[1]] * 240)


def test_typical_regions_are_where_a_category_is_surest():
    cells = np.zeros((12, 30), np.uint8)
    cells[2:8, 4:10] = 1
    cells[:, 20:] = 1
    cells[11, 0] = 255  # in no category
    certainty = np.full(cells.shape, 0.5, np.float32)
    certainty[3:7, 22:26] = 0.9
    found = typical_regions(cells, certainty, 2)
    assert sorted(found) == [0, 1]
    assert found[1].box == pytest.approx((22 / 30, 3 / 12, 26 / 30, 7 / 12))
    assert found[1].score == pytest.approx(0.9)


MOVE = """
const figure = document.querySelector(".compare");
const [photo, painted] = figure.querySelectorAll("img");
const slider = figure.querySelector("input");
const cut = () => getComputedStyle(painted).clipPath;
const box = painted.getBoundingClientRect();
const said = (x, y) => {
  painted.parentElement.dispatchEvent(new PointerEvent("pointermove",
    {clientX: box.left + x * box.width, clientY: box.top + y * box.height}));
  return figure.querySelector("output").textContent;
};
window.result = [cut()];
slider.value = 20;
slider.dispatchEvent(new Event("input"));
result.push(cut(), said(0.2, 0.2), said(0.8, 0.8));
painted.parentElement.dispatchEvent(new PointerEvent("pointerleave"));
result.push(figure.querySelector("output").textContent);
const strength = document.querySelector(".strength input");
strength.value = 100;
strength.dispatchEvent(new Event("input"));
result.push(getComputedStyle(painted).opacity);
result.push([...document.querySelectorAll("nav a")].map(a => a.getAttribute("href")).join());
result.push([...document.querySelectorAll("h2")].map(h => h.innerText).join());
"""


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_a_prediction(tmp_path, width):
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 1
    plain = Categories.plain(3)
    categories = Categories(["cat & dog", "</script><b>", "rest"], plain.colours, plain.of)
    names = [f"<i>{i}</i>" for i in range(25)]
    unused = Unused({"bad.png": "a <reason>"}, {".heic": 2}, ["link"], ["outputs/x"])
    folder = write(tmp_path / "out", categories, labels, names, unused)
    seen = open_page(folder / "report.html", tmp_path, MOVE, width)
    assert seen.wrong == []
    assert seen.requests == []
    assert len(seen.images) == 2 * 24 + 2 * 6
    assert all(image[0] > 0 and image[2] > 0 for image in seen.images)
    assert seen.overflow <= 0
    before, after, left, right, gone, strength, links, titles = seen.result
    assert ("50%" in before, "20%" in after) == (True, True)
    assert (left, right, gone, strength) == ("cat & dog", "</script><b>", "", "1")
    assert links == "report-2.html,report-2.html"
    assert titles.startswith("Categories,What the categories show,Images 1 to 24,Shares,Not seg")
    for text in ("a <reason>", "2 .heic", "<i>0</i>: 60 x 40; cat & dog 50 %", "page 1 of 2"):
        assert text in seen.text
    second = open_page(folder / "report-2.html", tmp_path, width=width)
    assert second.wrong == []
    assert "<i>24</i>" in second.text
    assert len(second.images) == 2
