import re

import numpy as np
import pytest
from PIL import Image

from densesiam.reports import visualize
from densesiam.reports.visualize import colorize, contact_sheet, heat_map, legend, overlay, palette


def least_distances(colours):
    """Least Oklab distance between any two colours, for each kind of vision."""
    looks = visualize._appearance(colours)
    apart = np.linalg.norm(looks[:, :, None] - looks[:, None], axis=-1)
    return (apart + 9 * np.eye(len(colours))).min(axis=(1, 2))


def test_palette_is_fixed_and_shorter_ones_open_longer_ones():
    assert palette(3).tolist() == [[230, 159, 0], [86, 180, 233], [0, 158, 115]]
    for count in (0, 1, 5, 12, 27):
        assert np.array_equal(palette(count), palette(30)[:count])
    assert len(np.unique(palette(200), axis=0)) == 200


def test_palette_cannot_be_spoilt_by_a_caller():
    palette(4)[:] = 0
    assert palette(4).max() > 0


@pytest.mark.parametrize(
    ("count", "normal", "dichromat"),
    # Colours 0.02 apart in Oklab are just told apart side by side. The seven of Okabe and Ito
    # reach 0.156 and 0.076; thirty evenly spaced hues of one brightness reach 0.016 and 0.003.
    [(7, 0.15, 0.07), (12, 0.15, 0.07), (27, 0.1, 0.05), (30, 0.1, 0.05)],
)
def test_palette_colours_are_apart_for_all_kinds_of_vision(count, normal, dichromat):
    least = least_distances(palette(count))
    assert least[0] > normal
    assert least[1:].min() > dichromat


def test_white_is_white_to_every_kind_of_vision():
    look = visualize._appearance(np.array([[255, 255, 255]]))
    # The published matrices are rounded to ten and to six digits.
    assert np.abs(look[:, 0] - [1, 0, 0]).max() < 1e-6


def test_colorize_paints_each_cluster_in_its_colour_and_void_grey():
    labels = np.array([[0, 1], [2, 255]])
    painted = np.asarray(colorize(labels, 3))
    assert painted.reshape(4, 3)[:3].tolist() == palette(3).tolist()
    assert painted[1, 1].tolist() == [128, 128, 128]


@pytest.mark.parametrize("wrong", [3, -1, 300])
def test_colorize_refuses_labels_without_a_colour(wrong):
    with pytest.raises(ValueError, match=rf"label {wrong} is not in 0 \.\. 2"):
        colorize(np.array([[0, wrong]]), 3)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2), ()])
def test_colorize_takes_one_map(shape):
    with pytest.raises(ValueError, match=rf"labels must be \(H, W\), got {re.escape(str(shape))}"):
        colorize(np.zeros(shape, dtype=int), 3)


def test_overlay_blends_photo_and_colour_and_leaves_void_bare():
    photo = Image.new("RGB", (3, 2), (100, 200, 0))
    labels = np.array([[0, 1, 255], [0, 1, 255]])
    blended = np.asarray(overlay(photo, labels, 2, opacity=0.5)).astype(int)
    expected = (np.array([100, 200, 0]) + palette(2).astype(int)) / 2
    assert np.abs(blended[0, :2] - expected).max() <= 0.5  # Pillow rounds to whole levels
    assert blended[0, 2].tolist() == [100, 200, 0]
    with pytest.raises(ValueError, match=r"3 x 2 pixels, the labels 2 x 3"):
        overlay(photo, labels.T, 2)


def test_contact_sheet_keeps_order_and_proportions():
    colours = ["red", "lime", "blue"]
    rows = [[Image.new("RGB", (40, 20), colour), Image.new("RGB", (10, 10))] for colour in colours]
    sheet = contact_sheet(rows, titles=["a", "b", "c"], height=30, rows_across=2)
    # Two columns of [60 + 4 + 30 + 8] in margins of 8; two lines of [20 + 30 + 8].
    assert sheet.size == (2 * 102 + 8, 2 * 58 + 8)
    centres = [(8 + 30, 8 + 35), (8 + 30, 66 + 35), (110 + 30, 8 + 35)]
    assert [sheet.getpixel(at) for at in centres] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_contact_sheet_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 titles for 1 rows"):
        contact_sheet([[Image.new("RGB", (2, 2))]], titles=["a", "b"])


def test_legend_shows_every_colour():
    sheet = np.asarray(legend(["sky", "a rather long name", "road"]))
    for colour in palette(3):
        assert (sheet == colour).all(axis=-1).sum() > 100


def test_heat_map_goes_from_white_to_blue_and_leaves_nothing_blank():
    shares = np.array([[1.0, 0.0], [0.25, 0.75], [np.nan, np.nan]])
    names = ["cat", "a rather long name", "absent"]
    sheet = heat_map(shares, names, names[:2], "true class", "predicted class")
    pixels = np.asarray(sheet)
    # The cells stand in the lower right corner, 34 pixels each, in a margin of 8.
    cells = [[pixels[34 * (i - 3) - 4, 34 * (j - 2) - 4] for j in (0, 1)] for i in range(3)]
    assert cells[0][0].tolist() == [11, 91, 165]
    assert cells[0][1].tolist() == cells[2][0].tolist() == cells[2][1].tolist() == [255, 255, 255]
    assert cells[1][0].sum() > cells[1][1].sum() > cells[0][0].sum()


def test_heat_map_writes_rows_beside_their_cells_and_columns_above():
    shares = np.zeros((3, 2))
    rows, columns = ["longest", "bb", "cc"], ["longest", "ee"]
    blank = np.asarray(heat_map(shares, rows, columns)).astype(int)
    left, top = blank.shape[1] - 2 * 34 - 8, blank.shape[0] - 3 * 34 - 8  # where the cells begin

    def changed(*arguments):
        """The first and last row, and the first and last column, that differ."""
        other = np.asarray(heat_map(shares, *arguments)).astype(int)
        y, x = np.nonzero((other != blank).any(axis=2))
        return y.min(), y.max(), x.min(), x.max()

    y0, y1, _, x1 = changed(["longest", "dd", "cc"], columns)
    assert x1 < left
    assert top + 34 <= y0 <= y1 < top + 68
    _, y1, x0, x1 = changed(rows, ["longest", "ff"])
    assert y1 < top
    assert left + 34 <= x0 <= x1 < left + 68
    _, _, _, x1 = changed(rows, columns, "true class", "")
    assert x1 < left
    _, y1, _, _ = changed(rows, columns, "", "predicted class")
    assert y1 < top


def test_colours_of_a_data_set_take_the_palettes_place():
    colours = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    painted = np.asarray(colorize(np.array([[0, 1, 255]]), 2, colours=colours))
    assert painted[0].tolist() == [[1, 2, 3], [4, 5, 6], [128, 128, 128]]
    photo = Image.new("RGB", (3, 1), (0, 0, 0))
    covered = np.asarray(overlay(photo, np.array([[0, 1, 255]]), 2, 1.0, colours=colours))
    assert covered[0].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]]


def test_pictures_are_bounded():
    sheet = contact_sheet([[Image.new("RGB", (4000, 5)), Image.new("RGB", (5, 4000))]], ["x" * 500])
    assert sheet.width <= 6 * 160
    assert legend(["x" * 5000]).width < 1000
    many = [f"class {k}" for k in range(500)]
    assert max(heat_map(np.eye(500), many, many).size) < 4000
