import numpy as np
import pytest
import torch

from densesiam.data import Evaluation, to_image, to_source
from tests.data.support import byte_ramps, grey_levels, noise, ramps
from tests.tolerance import assert_close


def test_native_changes_nothing():
    image = noise(30, 20)
    label = np.random.default_rng(0).integers(0, 5, (20, 30))
    s = Evaluation()(image, label)
    assert torch.equal(s["label"], torch.from_numpy(label))
    assert s["label"].dtype == torch.int64
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    # Grey levels of up to 255, normalised and back.
    assert_close(grey_levels(s["image"]), pixels.float(), terms=4, rms=255)
    assert s["box"].tolist() == [0, 0, 30, 20]
    assert s["source_size"].tolist() == [20, 30]
    assert "label" not in Evaluation()(image)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (Evaluation(32, 32), (32, 32)),
        (Evaluation(50, 32), (32, 32)),
        (Evaluation(None, 41), (41, 41)),
        (Evaluation(40, None), (40, 60)),
        (Evaluation(45, None), (45, 68)),
        (Evaluation(300, 280), (280, 280)),
    ],
)
def test_image_label_and_box_agree(transform, shape):
    width, height = 150, 100
    image = byte_ramps(width, height)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    s = transform(image, rows * width + columns)
    assert tuple(s["image"].shape[1:]) == tuple(s["label"].shape) == shape
    rows, columns = s["label"] // width, s["label"] % width
    left, top, right, bottom = s["box"].tolist()
    x = left + (torch.arange(shape[1]) + 0.5) / shape[1] * (right - left)
    y = top + (torch.arange(shape[0]) + 0.5) / shape[0] * (bottom - top)
    # The nearest pixel holds the position itself.
    assert torch.equal(columns, x.floor().long().expand(shape))
    assert torch.equal(rows, y[:, None].floor().long().expand(shape))
    # The image shows the same place: inside, where filter and source border do not meet.
    inside = (slice(5, -5), slice(5, -5))
    shown = grey_levels(s["image"])
    # 1.01 for the two passes of byte rounding, 0.085 for the filter (see views/test_paired.py).
    assert (shown[0] + 0.5 - x)[inside].abs().max() < 1.1
    assert (shown[1] + 0.5 - y[:, None])[inside].abs().max() < 1.1


def test_full_size_labels_keep_the_pixels_of_the_source():
    label = np.random.default_rng(0).integers(0, 5, (100, 150))
    whole = Evaluation(20, full_size_labels=True)(noise(150, 100), label)
    assert tuple(whole["image"].shape[1:]) == (20, 30)
    assert np.array_equal(whole["label"], label)
    cropped = Evaluation(20, 10, full_size_labels=True)(noise(150, 100), label)
    assert cropped["box"].tolist() == [50, 25, 100, 75]
    assert np.array_equal(cropped["label"], label[25:75, 50:100])


def test_centre_crop_is_central():
    s = Evaluation(50, 40)(noise(150, 100))
    assert s["box"].tolist() == [35, 10, 115, 90]


@pytest.mark.parametrize("transform", [Evaluation(33, 33), Evaluation(None, 64), Evaluation(200)])
def test_to_source_puts_labels_where_they_were(transform):
    width, height = 150, 100
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    s = transform(noise(width, height), rows * width + columns)
    back = to_source(s["label"], s["box"], s["source_size"], outside=-1)
    assert tuple(back.shape) == (height, width)
    left, top, right, bottom = s["box"].tolist()
    x, y = (torch.from_numpy(np.array(ramp)) for ramp in ramps(width, height))
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    assert torch.equal(back >= 0, inside)
    # Twice the nearest neighbour: half a cell and half a source pixel each way at most.
    reach = max(1.0, (right - left) / s["label"].shape[1]) / 2 + 0.5
    assert ((back % width + 0.5 - x)[inside].abs() <= reach).all()
    assert ((back // width + 0.5 - y)[inside].abs() <= reach).all()
    if transform.resize is None:
        assert torch.equal(back[inside], (y.floor() * width + x.floor()).long()[inside])


def test_to_source_fills_what_was_not_shown():
    predicted = torch.arange(6).reshape(2, 3)
    back = to_source(predicted, torch.tensor([1.0, 0, 4, 2]), torch.tensor([2, 5]), 255)
    assert back.tolist() == [[255, 0, 1, 2, 255], [255, 3, 4, 5, 255]]
    # A pixel belongs to the cell that holds its centre.
    back = to_source(predicted, torch.tensor([0.4, 0, 3.4, 2]), torch.tensor([2, 5]), 255)
    assert back.tolist() == [[0, 1, 2, 255, 255], [3, 4, 5, 255, 255]]


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((5, 1000), (4096, 20)),
        ((40, 8000), (8000, 40)),
        ((20, 40), (512, 256)),
        ((9000, 600), (256, 3840)),
    ],
)
def test_long_images_are_not_enlarged_without_bound(size, seen):
    """4096 pixels, or the source's own longer side, is as far as it goes."""
    item = Evaluation(resize=256)(noise(*size))
    assert tuple(item["image"].shape[1:]) == seen
    assert item["box"].tolist() == [0, 0, *size]


def test_errors():
    with pytest.raises(ValueError, match="crop=320 exceeds the shorter side that resize=256"):
        Evaluation(256, 320)
    with pytest.raises(ValueError, match="a centre crop of 64 pixels does not fit"):
        Evaluation(None, 64)(noise(80, 60))


def test_an_image_comes_back_from_its_normalised_form():
    image = noise(9, 7)
    assert np.array_equal(np.asarray(to_image(Evaluation()(image)["image"])), np.asarray(image))


def test_transforms_describe_themselves():
    assert Evaluation().description == "source's size, no crop"
    both = Evaluation(resize=320, crop=300).description
    assert both == "shorter side 320 pixels, centre crop 300 x 300"
