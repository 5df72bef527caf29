"""The views show what their crops and flips say they show."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from PIL import Image

from densesiam.data import OfficialSegmentationViews, SegmentationViews, TwoCrops
from densesiam.data.image.frame import Frame, resample
from densesiam.data.order.draws import seeded_generator
from densesiam.geometry import overlap_boxes
from densesiam.reference import overlap_sample
from tests.data.support import PLAIN, byte_ramps, grey_levels, noise, ramps
from tests.tolerance import assert_close

# Antialiasing weighs whole pixels by a triangle of the scale's width. Unless the scale is a whole
# number, those weights are not quite symmetric about the centre they stand for: their centroid is
# up to 0.085 source pixels off at scales of 1 to 2, and less beyond. Half a pixel, which any
# mistake in rounding or pixel centres would cost, is far more. Without reduction the filter is
# exact, and float32 leaves errors of 1e-5 pixels in images of a few hundred.
REDUCED, EXACT = 0.1, 1e-3

SOURCE = (300, 260)
CASES = {
    "segmentation": (SegmentationViews(64, 640, 640), (640, 640), REDUCED),
    "centre crop": (SegmentationViews(64, 200, 160), (200, 160), REDUCED),
    "native, not square": (SegmentationViews((48, 64), None, None), (None, None), REDUCED),
    "enlarged": (SegmentationViews(320, 150, 150), (150, 150), EXACT),
    "two crops": (TwoCrops(64), (None, None), REDUCED),
    "two crops, enlarged": (TwoCrops(320, scale=(0.2, 0.9)), (None, None), EXACT),
}


def positions(frame, sample, view):
    """(1, 2, h, w) source positions, by the image's own resampling of a ramp of positions."""
    size = tuple(sample[f"view{view}"].shape[1:])
    box = frame.in_source(tuple(sample[f"crop{view}"].tolist()))
    flip = bool(sample[f"flip{view}"])
    read = [np.array(resample(ramp, box, size, flip)) for ramp in ramps(*SOURCE)]
    return torch.from_numpy(np.stack(read)).double()[None]


@pytest.mark.parametrize("case", CASES)
def test_overlap_shows_the_same_source_in_both_views(case):
    views, (resize, crop), tolerance = CASES[case]
    frame = Frame.of(SOURCE, resize, crop)
    image = Image.new("RGB", SOURCE)
    compared, flips = 0, set()
    for i in range(25):
        s = views(image, seeded_generator(0, i))
        crops = s["crop1"][None].double(), s["crop2"][None].double()
        boxes1, boxes2, _ = overlap_boxes(*crops, s["flip1"][None], s["flip2"][None])
        low = torch.maximum(crops[0][0, :2], crops[1][0, :2])
        high = torch.minimum(crops[0][0, 2:], crops[1][0, 2:])
        # Cell centres keep 1/14 of the overlap from its edge. In overlaps this large that is
        # more than the filter reaches, and no sample sees the image's border.
        if ((high - low) * frame.pixel).min() < 100:
            continue
        read1 = overlap_sample(positions(frame, s, 1), boxes1, 7)[0]
        read2 = overlap_sample(positions(frame, s, 2), boxes2, 7)[0]
        share = (torch.arange(7) + 0.5) / 7
        centres = (low[:, None] + (high - low)[:, None] * share) * frame.pixel
        x, y = centres[0] + frame.left, centres[1] + frame.top
        truth = torch.stack([x.expand(7, 7), y[:, None].expand(7, 7)])
        for got, expected in ((read1, truth), (read2, truth), (read1, read2)):
            assert (got - expected).abs().max() < tolerance
        compared += 1
        flips.add((bool(s["flip1"]), bool(s["flip2"])))
    assert compared >= 10
    assert len(flips) == (4 if isinstance(views, TwoCrops) else 2)


@pytest.mark.parametrize(
    "views",
    [
        SegmentationViews(96, 300, 280, photometric=PLAIN),
        SegmentationViews((60, 90), None, None, photometric=PLAIN),
        TwoCrops(96, photometric=PLAIN),
    ],
    ids=["square", "native", "two crops"],
)
def test_views_are_read_from_the_crops_they_state(views):
    image = byte_ramps(250, 200)
    resize, crop = (
        (views.resize, views.crop) if isinstance(views, SegmentationViews) else (None,) * 2
    )
    frame = Frame.of(image.size, resize, crop)
    biases = []
    for i in range(12):
        s = views(image, seeded_generator(1, i))
        for k in (1, 2):
            view = grey_levels(s[f"view{k}"])
            box = frame.in_source(tuple(s[f"crop{k}"].tolist()))
            for channel, ramp in enumerate(ramps(*image.size)):
                read = resample(ramp, box, tuple(view.shape[1:]), bool(s[f"flip{k}"]))
                # Pixel 0 holds value 0 and has its centre at 0.5. The byte image is rounded to
                # whole grey levels, that is, to pixels, in each of two passes.
                error = view[channel] + 0.5 - torch.from_numpy(np.array(read))
                assert error.abs().max() <= 1.01
                biases.append(error.mean().item())
    # Within one view the roundings may all go one way, but over the draws they even out: 48
    # numbers of deviation below 0.25 have a mean within 0.15, four standard errors.
    assert abs(np.mean(biases)) < 0.15


def test_segmentation_geometry():
    views = SegmentationViews(32, 100, 80, scale_min=0.25, photometric=PLAIN)
    image = noise(130, 110)
    samples = [views(image, seeded_generator(0, i)) for i in range(400)]
    crops = torch.stack([s["crop1"] for s in samples])
    width, height = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    assert_close(width, height, terms=4, rms=80)
    assert crops.min() >= 0
    assert crops.max() <= 80
    assert 20 <= width.min() < 22
    assert 78 < width.max() <= 80
    # The mean of 400 values of U(20, 80) has a standard error of 0.87; four of them.
    assert width.mean().item() == pytest.approx(50, abs=3.5)
    assert (crops % 1 > 0).any(dim=1).all(), "positions are continuous"
    place = crops[:, :2] / (80 - width)[:, None]
    assert (place.amin(dim=0) < 0.02).all()
    assert (place.amax(dim=0) > 0.98).all()
    share = torch.stack([s["flip1"] for s in samples]).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)  # four standard errors of 0.025
    assert not any(s["flip2"] for s in samples)
    assert torch.stack([s["crop2"] for s in samples]).unique(dim=0).tolist() == [[0, 0, 80, 80]]


def test_crop_keeps_the_output_aspect_in_other_frames():
    views = SegmentationViews((20, 40), None, None, scale_min=0.5, photometric=PLAIN)
    for (width, height), widest in (((90, 120), 90), ((200, 60), 120)):
        for i in range(20):
            crop = views(noise(width, height), seeded_generator(0, i))["crop1"]
            crop_width, crop_height = (crop[2:] - crop[:2]).tolist()
            assert crop_width == pytest.approx(2 * crop_height, rel=1e-5)
            assert widest / 2 <= crop_width <= widest


def test_two_crops_keep_to_scale_and_ratio():
    views = TwoCrops(16, scale=(0.2, 0.6), ratio=(0.5, 2.0), photometric=PLAIN)
    ratios = []
    for i in range(100):
        s = views(noise(90, 80), seeded_generator(0, i))
        for crop in (s["crop1"], s["crop2"]):
            width, height = (crop[2:] - crop[:2]).tolist()
            assert 0.2 <= width * height / (90 * 80) <= 0.6 + 1e-6
            assert 0.5 - 1e-6 <= width / height <= 2 + 1e-6
            ratios.append(width / height)
            assert crop.min() >= 0
            assert crop[2] <= 90 + 1e-4
            assert crop[3] <= 80 + 1e-4
    assert not torch.equal(s["crop1"], s["crop2"])
    assert min(ratios) < 0.6
    assert max(ratios) > 1.6
    # Log-uniform: as many above 1 as below. Four standard errors of 0.035.
    assert np.mean(np.array(ratios) > 1) == pytest.approx(0.5, abs=0.14)


def test_two_crops_fall_back_on_a_centred_crop():
    views = TwoCrops(16, scale=(0.9, 1.0), photometric=PLAIN)
    s = views(noise(200, 20), seeded_generator(0))  # no crop of ratio 4/3 covers 90 % of this
    assert s["crop1"].tolist() == pytest.approx([100 - 40 / 3, 0, 100 + 40 / 3, 20])


def test_views_get_colours_of_their_own():
    views = SegmentationViews(32, 40, 40, scale_min=1.0, p_flip=0.0)
    s = views(noise(50, 40), seeded_generator(0))
    assert_close(s["crop1"], s["crop2"], terms=4)
    assert (s["view1"] - s["view2"]).abs().max() > 0.1


def test_blur_is_counted_in_pixels_of_the_frame():
    sigmas = []

    class Recorder:
        def __call__(self, image, generator, pixel=1.0):
            sigmas.append(pixel)
            return image

    views = SegmentationViews(32, 128, 64, scale_min=1.0, photometric=Recorder())
    views(noise(50, 40), seeded_generator(0))
    assert sigmas == pytest.approx([2.0, 2.0])  # a view pixel is two frame pixels wide


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegmentationViews(0), "size must be at least 1"),
        (lambda: SegmentationViews(320, resize=320, crop=640), "crop=640 exceeds"),
        (lambda: SegmentationViews(320, resize=0, crop=None), "resize must be at least 1"),
        (lambda: SegmentationViews(320, scale_min=0.0), r"scale_min must be in \(0, 1\]"),
        (lambda: TwoCrops(scale=(0.5, 0.2)), "scale must be"),
        (lambda: TwoCrops(ratio=(0.0, 1.0)), "ratio must be"),
        (lambda: TwoCrops(size=(0, 4)), "size must be at least 1"),
        (lambda: OfficialSegmentationViews(cells=0), "size, resize and cells"),
        (lambda: OfficialSegmentationViews(scale_min=0.0), "scale_min must be"),
        (
            lambda: SegmentationViews(8, None, 64)(noise(90, 50), seeded_generator(0)),
            "centre crop of 64 pixels does not fit into an image of 90 x 50",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def release_crop(length, scale, share):
    side = int(scale * length)
    return round((length - side) * share), side


def test_official_crops_are_rounded_separately_and_not_antialiased():
    views = OfficialSegmentationViews(80, resize=256, cells=20, photometric=PLAIN)
    image = byte_ramps(256, 256)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()[None]
    offsets = []
    for i in range(30):
        s = views(image, seeded_generator(0, i))
        g = seeded_generator(0, i)
        scale, x, y, flip = torch.rand(4, dtype=torch.float64, generator=g).tolist()
        scale, flip = 0.5 + 0.5 * scale, flip < 0.5
        (left, side), (top, _) = release_crop(256, scale, x), release_crop(256, scale, y)
        cut = pixels[..., top : top + side, left : left + side]
        expected = F.interpolate(cut, (80, 80), mode="bilinear", align_corners=False)[0]
        expected = expected.flip(-1) if flip else expected
        assert bool(s["flip1"]) == flip
        assert (grey_levels(s["view1"]) - expected).abs().max() < 1e-3  # float32
        (left_cell, side_cells), (top_cell, _) = (
            release_crop(20, scale, x),
            release_crop(20, scale, y),
        )
        cells = [left_cell, top_cell, left_cell + side_cells, top_cell + side_cells]
        assert (s["crop1"] / 12.8).tolist() == pytest.approx(cells, abs=1e-4)
        offsets.append(
            (torch.tensor([left, top, left + side, top + side]) / 12.8 - torch.tensor(cells)).abs()
        )
    # Where the two roundings part, the views are misaligned: up to 1.4 cells, as in the release.
    assert 0.7 < torch.stack(offsets).max() < 1.5


def test_official_second_view_is_antialiased():
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    checks[::4] = 255  # whatever phase it is read at, reducing by 4 without a filter shows it
    image = Image.fromarray(checks.astype(np.uint8)).convert("RGB")
    views = OfficialSegmentationViews(
        16, resize=64, cells=8, scale_min=1.0, p_flip=0.0, photometric=PLAIN
    )
    s = views(image, seeded_generator(0))
    view1, view2 = grey_levels(s["view1"]), grey_levels(s["view2"])
    filtered = TF.resize(TF.pil_to_tensor(image).float(), [16, 16], antialias=True)
    unfiltered = TF.resize(TF.pil_to_tensor(image).float(), [16, 16], antialias=False)
    assert (filtered - unfiltered).abs().max() > 20
    assert (view2 - filtered).abs().max() <= 1.01
    assert (view1 - unfiltered).abs().max() < 0.01


def test_official_blur():
    assert OfficialSegmentationViews().photometric.blur_sigma == (0.0, 1.8)
