"""Files decoded at a reduction show the same places, and nearly the same pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from densesiam.data import (
    Evaluation,
    ImageFiles,
    ImageReadError,
    SegmentationViews,
    TwoCrops,
    read_image,
    sample_paths,
)
from densesiam.data.image import lazy
from densesiam.data.image.frame import resample
from densesiam.data.image.lazy import MARGIN, LazyImage, Part
from densesiam.data.sets.classified import ClassifiedImages
from tests.data.support import PLAIN, STORED, noise


def save_jpeg(image, path, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = STORED[orientation]
    image = image if how is None else image.transpose(how)
    image.save(path, exif=exif, quality=100)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of the images that parts are resampled from."""
    sizes = []

    def noted(image, *part):
        sizes.append(image.size)
        return resample(image, *part)

    monkeypatch.setattr(lazy, "resample", noted)
    return sizes


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_places_are_exact(tmp_path, decoded, orientation, reduction):
    # Neither side is a multiple of 8, and the two leave different rests.
    width, height = 501, 397
    box, pixel = (20.3, 10.7, 470.9, 380.1), MARGIN * reduction
    size = int((box[3] - box[1]) / pixel), int((box[2] - box[0]) / pixel)
    decoded_to = -(-width // reduction), -(-height // reduction)
    for axis in (0, 1):
        # Two pixels a level, and noise, so that the rounding to bytes averages out; without
        # colours, whose conversion has a rounding of its own.
        place = np.indices((height, width))[1 - axis] + 0.5
        noise_of_levels = np.random.default_rng(0).uniform(-4, 4, (height, width))
        ramp = Image.fromarray((place / 2 + noise_of_levels).clip(0).round().astype(np.uint8))
        photo = LazyImage(save_jpeg(ramp, tmp_path / "a.jpg", orientation))
        assert photo.size == (photo.width, photo.height) == (width, height)
        (read,) = photo.read([Part(box, size, flip=False)])
        assert decoded.pop() == decoded_to
        shown = 2 * np.asarray(read, float)[..., 0].mean(axis=axis)
        low, high = box[axis], box[axis + 2]
        exact = low + (np.arange(len(shown)) + 0.5) * (high - low) / len(shown)
        # The border has no neighbours beyond it to weigh. The noise, 2.3 levels or 4.6 pixels of
        # deviation, is below 0.04 in a mean over 15,000 pixels and more of the source; a byte that
        # rounds a block's mean, of eighths, upwards is 1/16 level or 0.13 pixels off.
        error = (shown - exact)[2:-2]
        assert abs(error.mean()) < 0.3
        assert abs(error[: len(error) // 2].mean()) < 0.3  # no part is stretched


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_pixels_differ_less_than_between_two_filters(tmp_path, reduction):
    """At the least margin, where it is worst; the filters are Hamming's and the triangle."""
    compared = 0
    for path in sample_paths():
        image = read_image(path)
        height, width = (int(side / (MARGIN * reduction)) for side in (image.height, image.width))
        if min(height, width) < 32:
            continue
        image.save(tmp_path / "a.jpg", quality=90)
        part = Part((0, 0, *image.size), (height, width), flip=False)
        photo = LazyImage(tmp_path / "a.jpg")
        (reduced,), (full,) = photo.read([part]), photo.read([part], "full")
        other = photo.decode().resize((width, height), Image.Resampling.HAMMING)
        assert rms(reduced, full) < rms(other, full)
        compared += 1
    assert compared >= 8


def rms(one, other):
    return np.sqrt(np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2))


def test_every_part_has_its_margin(tmp_path, decoded):
    photo = LazyImage(save_jpeg(noise(480, 360), tmp_path / "a.jpg"))
    coarse, fine = Part((0, 0, 480, 360), (30, 40), False), Part((0, 0, 48, 36), (9, 12), True)
    photo.read([coarse])
    photo.read([coarse, fine])
    photo.read([coarse, fine._replace(size=(12, 17))])
    photo.read([coarse], "full")
    assert decoded == [(60, 45), *[(240, 180)] * 2, *[(480, 360)] * 2, (480, 360)]
    # Once it was decoded whole, nothing is decoded again.
    photo.read([coarse])
    assert decoded[-1] == (480, 360)


def test_unreduced_bits_are_those_of_the_whole_image(tmp_path):
    path = save_jpeg(noise(90, 70), tmp_path / "a.jpg", orientation=6)
    noise(90, 70).save(tmp_path / "b.png")
    part = Part((3, 5, 60, 66), (40, 40), flip=True)
    for each in (path, tmp_path / "b.png"):
        (read,) = LazyImage(each).read([part])
        assert read.tobytes() == resample(read_image(each), *part).tobytes()


def test_what_shows_photographs_decodes_them_reduced(tmp_path, decoded):
    (tmp_path / "cat").mkdir()
    path = save_jpeg(noise(800, 640), tmp_path / "cat" / "a.jpg")
    reduced, full = (200, 160), (800, 640)
    for decode, expected in (("reduced", reduced), ("full", full)):
        for views in (
            SegmentationViews(100, 320, None, 1.0, photometric=PLAIN, decode=decode),
            TwoCrops(100, (0.98, 1.0), (1.2, 1.25), photometric=PLAIN, decode=decode),
        ):
            decoded.clear()
            ImageFiles([path], views)[0]
            assert decoded == [expected] * 2
        decoded.clear()
        Evaluation(100, decode=decode)(LazyImage(path))
        assert decoded == [expected]
    decoded.clear()
    for resize in (120, None):
        ClassifiedImages(tmp_path, 32, resize)[0]
    assert all(side < 800 for side, _ in decoded)
    assert len(decoded) == 2


def test_views_of_ones_own_get_images(tmp_path):
    class Own(SegmentationViews):
        lazy = False

        def __call__(self, image, generator):
            assert isinstance(image, Image.Image)
            return super().__call__(image, generator)

    path = save_jpeg(noise(64, 48), tmp_path / "a.jpg")
    assert ImageFiles([path], Own(16, 24, None))[0]["view1"].shape == (3, 16, 16)


def test_a_file_that_breaks_off_is_replaced(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        save_jpeg(noise(64, 64), tmp_path / name)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    views = SegmentationViews(8, 16, None)
    with pytest.warns(UserWarning, match=r"a\.jpg.*the next image takes its place"):
        item = ImageFiles(paths, views)[0]
    assert (item["index"], item["skipped"]) == (1, 1)
    with pytest.raises(ImageReadError, match=r"cannot read image .*a\.jpg: .*truncated"):
        ImageFiles(paths, views, errors="raise")[0]


def test_other_words_are_refused():
    for make in (Evaluation, SegmentationViews, TwoCrops):
        with pytest.raises(ValueError, match="decode must be"):
            make(decode="half")


def test_colours_survive(tmp_path):
    """Grey and CMYK files have reductions of their own."""
    for mode in ("L", "CMYK"):
        image = Image.new("RGB", (64, 64), (200, 200, 200)).convert(mode)
        image.save(tmp_path / f"{mode}.jpg", quality=100)
        part = Part((0, 0, 64, 64), (4, 4), flip=False)
        photo = LazyImage(tmp_path / f"{mode}.jpg")
        reduced, full = (photo.read([part], decode)[0] for decode in ("reduced", "full"))
        assert reduced.mode == "RGB"
        assert torch.equal(*(torch.from_numpy(np.array(each)) for each in (reduced, full)))
