"""Label maps as PNG files: every value comes back, in files no larger than Pillow's."""

import io

import numpy as np
import pytest
from PIL import Image

from densesiam.reports import label_png
from densesiam.reports.label_png import write_label_png


def blots(height, width, values, dtype):
    """A map of round regions, as segmentations are."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    seeds = rng.random((values, 2)) * (height, width)
    distance = [(y - row) ** 2 + (x - column) ** 2 for row, column in seeds]
    return np.argmin(distance, axis=0).astype(dtype)


@pytest.mark.parametrize("strip", [1, 400, 1 << 22])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (97, 61)])
def test_every_value_comes_back(tmp_path, monkeypatch, size, dtype, strip):
    monkeypatch.setattr(label_png, "_STRIP", strip)
    limit = np.iinfo(dtype).max + 1
    labels = np.random.default_rng(0).integers(0, limit, size, dtype)
    write_label_png(tmp_path / "a.png", labels)
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == ("L" if dtype == np.uint8 else "I;16")
        assert np.array_equal(np.asarray(file), labels)
    # Views are written as they are seen.
    write_label_png(tmp_path / "a.png", labels.T)
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file), labels.T)


def test_regions_take_no_more_than_by_the_usual_search(tmp_path):
    labels = blots(300, 400, 40, np.uint8)
    write_label_png(tmp_path / "a.png", labels)
    usual = io.BytesIO()
    Image.fromarray(labels).save(usual, "png")
    assert (tmp_path / "a.png").stat().st_size <= usual.tell()


def test_other_types_are_refused(tmp_path):
    with pytest.raises(TypeError, match="uint8 or uint16, got int64"):
        write_label_png(tmp_path / "a.png", np.zeros((2, 2), np.int64))
