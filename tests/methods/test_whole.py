"""Images of any size, whole and in tiles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from densesiam import ops
from densesiam.methods.whole import Axis, WholeImages, enlarged
from tests.data.support import noise
from tests.tolerance import assert_close

CPU = torch.device("cpu")


class Local(nn.Module):
    """Logits of stride 4 that depend on the pixels within `reach` of a cell, and nothing else."""

    def __init__(self, reach, classes=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        side = 4 + 2 * reach
        self.reach = reach
        self.weight = torch.randn(classes, 3, side, side, generator=generator) / side
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[2:]))
        height, width = (-(-side // 4) * 4 for side in images.shape[2:])
        more = (self.reach, width - images.shape[3] + self.reach)
        more += (self.reach, height - images.shape[2] + self.reach)
        return F.conv2d(F.pad(images, more), self.weight, stride=4)


def segment(network, image, **settings):
    settings = {"tile": 64, "overlap": 32, **settings}
    return WholeImages(network, 5, 4, 16, CPU, **settings)(image)


@pytest.mark.parametrize("size", [(300, 64), (64, 300), (201, 183), (65, 30), (129, 129)])
def test_tiles_of_a_network_that_sees_little_are_the_whole(size):
    """What is seen lies within the part of an overlap that has no weight."""
    network, image = Local(reach=4), noise(*size)
    tiled = segment(network, image)
    assert tiled.tiles > 1
    assert max(max(shape) for shape in network.sizes) <= 64
    whole = segment(network, image, tile=1024)
    assert whole.tiles == 1
    assert tiled.cells.shape == whole.cells.shape
    assert_close(
        torch.from_numpy(tiled.certainty), torch.from_numpy(whole.certainty), terms=3 * 12 * 12
    )
    # Where two categories are alike but for rounding, either may win.
    assert (tiled.labels != whole.labels).mean() < 1e-3


def test_no_seams():
    """Cut in the middle of their overlap, tiles that see padding would not fit; blended they do."""
    network, image = Local(reach=70), Image.new("RGB", (640, 64), (90, 120, 200))
    # Smooth, so that steps come from tiles alone; rising, so that each side's padding counts.
    network.weight = torch.linspace(0, 1, 144).expand(5, 3, 144, 144) / 144
    model = WholeImages(network, 5, 4, 16, CPU, tile=256, overlap=128)
    size = model.size(image.size)
    columns = model._axis(size[1])
    *_, blended = model._blended(image, size, model._axis(size[0]), columns)
    left, right = (
        model._logits(image, size, (0, start), (64, 256))[:, 8] for start in columns.starts[:2]
    )
    begin = columns.starts[1] // 4
    middle = (begin + 256 // 4) // 2
    seam = (left[:, middle - 1] - right[:, middle - begin]).abs().max()
    step = (blended[:, 8, 1:] - blended[:, 8, :-1]).abs().amax(dim=0)
    assert step[begin : 256 // 4].max() < seam / 3


def test_weights_add_up_to_one():
    for side in (65, 100, 129, 1000, 4097):
        axis = Axis.of(side, 64, 32, 16, 4)
        total = torch.zeros(axis.cells)
        for i, weight in enumerate(axis.weights):
            total[axis.first_cell(i) : axis.first_cell(i) + len(weight)] += weight
        assert_close(total, torch.ones(axis.cells), terms=4, rms=1.0)
        assert axis.starts[-1] + axis.lengths[-1] == side
        assert all(start % 16 == 0 for start in axis.starts)
        assert max(axis.lengths) <= 64
        gaps = np.diff(axis.starts)
        assert max(gaps, default=0) <= 32


@pytest.mark.parametrize("parts", [[9], [1] * 9, [4, 3, 2]])
@pytest.mark.parametrize("size", [(40, 30), (5, 7), (9, 6), (1, 1), (200, 3)])
@pytest.mark.parametrize("confidence", [False, True])
def test_strips_are_the_label_map(parts, size, confidence, monkeypatch):
    monkeypatch.setattr("densesiam.methods.whole._STRIP", 64)
    monkeypatch.setattr("densesiam.methods.whole._AT_ONCE", 0)
    z = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0))
    strips = list(enlarged(iter(z.split(parts, dim=1)), 9, size, confidence))
    labels = torch.cat([strip for strip, _ in strips])
    assert torch.equal(labels, ops.label_map(z[None], size)[0])
    if confidence:
        sure = torch.cat([each for _, each in strips])
        wide = F.interpolate(z[None], size, mode="bilinear", align_corners=False)
        assert_close(sure, wide.softmax(dim=1).amax(dim=1)[0], terms=16)


@pytest.mark.parametrize(
    ("size", "settings", "seen"),
    [
        ((60, 40), {}, (40, 60)),
        ((60, 40), {"resize": 20}, (20, 30)),
        ((600, 40), {"large": "reduce"}, (4, 64)),
        ((5, 4000), {"resize": 256, "large": "reduce"}, (64, 1)),
        ((4000, 5), {"resize": 256}, (5, 4096)),  # bounded on both sides
        ((1, 1), {"resize": 32}, (32, 32)),
        ((1, 1), {}, (1, 1)),
    ],
)
def test_what_the_network_sees(size, settings, seen):
    found = segment(Local(reach=1), noise(*size), **settings)
    assert found.seen == seen
    assert found.labels.shape == size[::-1]
    assert found.confidence is None


def test_confidence_and_many_categories():
    network = Local(reach=1, classes=300)
    found = WholeImages(network, 300, 4, 16, CPU, confidence=True)(noise(30, 20))
    assert found.labels.dtype == np.uint16
    assert found.confidence.shape == (20, 30)
    assert found.certainty.max() <= 1
    assert found.confidence.max() > found.confidence.min() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"large": "crop"}, 'large must be "tile" or "reduce", got \'crop\''),
        ({"overlap": 64}, "overlap must be at least 1 pixel and below tile, got 64 and 64"),
        ({"resize": 0}, "resize must be at least 1 pixel, got 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        segment(Local(reach=1), noise(8, 8), **settings)
