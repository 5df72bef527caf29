"""Random changes of colour and sharpness that leave the geometry alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image, ImageFilter

from densesiam.data.order.draws import chance, uniform


@dataclass(frozen=True)
class Photometric:
    """Colour jitter, grey and Gaussian blur. The defaults are those of the segmentation views.

    Brightness, contrast and saturation are multiplied by a factor from U(1 - a, 1 + a), a being
    the amount given (never below 0); the hue turns by U(-hue, hue) of a full circle.

    Args:
        brightness: amount.
        contrast: amount.
        saturation: amount.
        hue: amount, at most 0.5.
        p_jitter: probability of each of the four changes.
        joint: as in MoCo v2, make all four changes or none, in random order; otherwise each is
            made or not by itself, in the order given here.
        p_grey: probability of dropping the colours.
        blur_sigma: least and greatest standard deviation of the blur, in pixels.
        p_blur: probability of blurring.

    Raises:
        ValueError: a value out of its range.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.1
    p_jitter: float = 0.8
    joint: bool = False
    p_grey: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    p_blur: float = 0.5

    def __post_init__(self) -> None:
        for name in ("p_jitter", "p_grey", "p_blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], got {self.hue}")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be 0 <= least <= greatest, got {self.blur_sigma}")

    def __call__(
        self, image: Image.Image, generator: torch.Generator, pixel: float = 1.0
    ) -> Image.Image:
        """Draw and make the changes.

        Args:
            image: 8-bit RGB.
            generator: source of the draws.
            pixel: side of one of the image's pixels, in the pixels that `blur_sigma` counts.
        """
        for change in self._jitter(generator):
            image = change(image)
        if chance(generator, self.p_grey):
            image = TF.rgb_to_grayscale(image, num_output_channels=3)
        if chance(generator, self.p_blur):
            sigma = uniform(generator, *self.blur_sigma) / pixel
            image = image.filter(ImageFilter.GaussianBlur(sigma))
        return image

    def _jitter(self, generator: torch.Generator) -> list[Callable[[Image.Image], Image.Image]]:
        def factor(amount: float) -> float:
            return uniform(generator, max(0.0, 1 - amount), 1 + amount)

        changes: list[Callable[[Image.Image], Image.Image]] = [
            partial(TF.adjust_brightness, brightness_factor=factor(self.brightness)),
            partial(TF.adjust_contrast, contrast_factor=factor(self.contrast)),
            partial(TF.adjust_saturation, saturation_factor=factor(self.saturation)),
            partial(TF.adjust_hue, hue_factor=uniform(generator, -self.hue, self.hue)),
        ]
        if self.joint:
            order = torch.randperm(4, generator=generator).tolist()
            return [changes[i] for i in order] if chance(generator, self.p_jitter) else []
        return [change for change in changes if chance(generator, self.p_jitter)]


MOCO_V2 = Photometric(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, joint=True)
"""The augmentation of MoCo v2 and SimSiam, for pre-training."""
