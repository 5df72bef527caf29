import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from densesiam.reports import polygons
from densesiam.reports.polygons import regions


def filled(outlines, shape):
    """What pycocotools makes of polygons."""
    flat = [outline.ravel().astype(float).tolist() for outline in outlines]
    runs = coco.frPyObjects(flat, *shape)
    return coco.decode(coco.merge(runs)).astype(bool)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (13, 17), (40, 30)])
@pytest.mark.parametrize("strip", [1, 60, 1 << 22])
def test_pycocotools_reads_back_the_very_mask(shape, density, strip, monkeypatch):
    monkeypatch.setattr(polygons, "_STRIP", strip)
    rng = np.random.default_rng(0)
    for _ in range(10):
        mask = rng.random(shape) < density
        found = regions(mask)
        if not mask.any():
            assert found == []
            continue
        assert np.array_equal(filled([region.joined() for region in found], shape), mask)


def test_outlines_and_holes():
    mask = np.ones((5, 7), bool)
    mask[1:4, 1:4] = False  # a hole, with an island
    mask[2, 2] = True
    found = regions(mask)
    assert len(found) == 2
    assert found[0].outline.tolist() == [[0, 0], [7, 0], [7, 5], [0, 5]]
    (hole,) = found[0].holes
    assert sorted(hole.tolist()) == [[1, 1], [1, 4], [4, 1], [4, 4]]
    assert sorted(found[1].outline.tolist()) == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert found[1].holes == []


def test_pixels_that_touch_at_a_corner_are_apart():
    for mask in (np.eye(3, dtype=bool), np.eye(3, dtype=bool)[:, ::-1]):
        found = regions(mask)
        assert [len(region.outline) for region in found] == [4, 4, 4]


def test_smooth_shapes_have_few_corners():
    picture = Image.new("1", (200, 200))
    ImageDraw.Draw(picture).rectangle((20, 30, 150, 160), fill=1)
    (region,) = regions(np.asarray(picture))
    assert len(region.outline) == 4
