import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image, ImageFilter

from densesiam.data import MOCO_V2, Photometric
from densesiam.data.order.draws import seeded_generator
from tests.data.support import PLAIN, noise


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_off_leaves_the_image_alone():
    image = noise(20, 20)
    assert same(PLAIN(image, seeded_generator(0)), image)


def one(**amounts):
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    off = {"p_grey": 0.0, "p_blur": 0.0}
    return Photometric(**{**none, **off, "p_jitter": 1.0, **amounts})


@pytest.mark.parametrize(
    ("name", "position", "change"),
    [
        ("brightness", 0, TF.adjust_brightness),
        ("contrast", 1, TF.adjust_contrast),
        ("saturation", 2, TF.adjust_saturation),
    ],
)
def test_factors(name, position, change):
    image = noise(20, 20)
    u = torch.rand(4, dtype=torch.float64, generator=seeded_generator(3))[position].item()
    got = one(**{name: 0.3})(image, seeded_generator(3))
    # The other factors are 1, which leaves 8-bit values alone; a hue of 0 may cost one level.
    difference = np.asarray(got, int) - np.asarray(change(image, 0.7 + 0.6 * u), int)
    assert abs(difference).max() <= 6
    assert not same(got, image)


def test_hue():
    image = Image.new("RGB", (4, 4), (200, 40, 40))
    u = torch.rand(4, dtype=torch.float64, generator=seeded_generator(5))[3].item()
    got = one(hue=0.1)(image, seeded_generator(5))
    assert same(got, TF.adjust_hue(image, -0.1 + 0.2 * u))


def test_each_change_is_drawn_by_itself_or_all_together():
    generator = seeded_generator(0)
    counts = [len(Photometric()._jitter(generator)) for _ in range(300)]
    assert set(counts) == {1, 2, 3, 4} or set(counts) == {0, 1, 2, 3, 4}
    # 4 x 0.8 = 3.2 on average; the mean of 300 has a standard error of 0.046; four of them.
    assert np.mean(counts) == pytest.approx(3.2, abs=0.19)
    counts = [len(MOCO_V2._jitter(generator)) for _ in range(300)]
    assert set(counts) == {0, 4}
    assert np.mean(counts) == pytest.approx(3.2, abs=0.37)  # four standard errors of 0.092
    orders = {tuple(c.func.__name__ for c in MOCO_V2._jitter(generator)) for _ in range(200)}
    assert len(orders) == 25  # none, and all 24 orders


def test_grey():
    got = np.asarray(Photometric(p_jitter=0, p_grey=1, p_blur=0)(noise(9, 9), seeded_generator(0)))
    assert got.shape == (9, 9, 3)
    assert (got == got[..., :1]).all()


def test_blur_follows_sigma_and_the_size_of_a_pixel():
    image = noise(40, 40)
    blur = Photometric(p_jitter=0, p_grey=0, p_blur=1, blur_sigma=(1.5, 1.5))
    assert same(blur(image, seeded_generator(0)), image.filter(ImageFilter.GaussianBlur(1.5)))
    halved = blur(image, seeded_generator(0), pixel=2.0)
    assert same(halved, image.filter(ImageFilter.GaussianBlur(0.75)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"p_grey": 1.5}, "p_grey must be in"),
        ({"contrast": -0.1}, "contrast must not be negative"),
        ({"hue": 0.6}, "hue must be in"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma must be"),
    ],
)
def test_errors(values, message):
    with pytest.raises(ValueError, match=message):
        Photometric(**values)
