"""The frame: a source image resized and centre-cropped, as coordinates rather than pixels."""

from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]
"""left, top, right, bottom: continuous edges, in pixels of whatever the box lies in."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


LONGEST = 4096
"""The longest side that an image is enlarged to: 5 x 4000 pixels would become 256 x 204,800."""


@dataclass(frozen=True)
class Frame:
    """The image after resizing its shorter side and cropping its centre, without resampling it.

    Views are stated in pixels of the frame but read straight from the source, through one
    antialiased resampling: sharper and cheaper than resizing twice, and free of the rounding that
    whole pixels would force on the frame's size and place.
    """

    width: float
    """In pixels of the frame, not necessarily whole."""
    height: float
    left: float
    """Place of the frame's left edge, in pixels of the source."""
    top: float
    pixel: float
    """Side of one pixel of the frame, in pixels of the source."""

    @classmethod
    def of(cls, source: tuple[int, int], resize: int | None, crop: int | None) -> "Frame":
        """The frame of a source of (width, height) pixels.

        Args:
            source: width and height of the source image.
            resize: length of the frame's shorter side before the crop; None keeps the source's. An
                image that is not cropped is enlarged to a longer side of `LONGEST` at most.
            crop: side of the square cut from the centre; None keeps the whole image.

        Raises:
            ValueError: the crop is larger than the image; nothing is ever padded.
        """
        width, height = source
        pixel = min(source) / resize if resize else 1.0
        if not crop:
            if pixel < 1:
                pixel = max(pixel, min(1.0, max(source) / LONGEST))
            return cls(width / pixel, height / pixel, 0.0, 0.0, pixel)
        if crop > min(source) / pixel:
            raise ValueError(
                f"a centre crop of {crop} pixels does not fit into an image of {width} x {height} "
                "pixels; give `resize` too, or a smaller `crop`"
            )
        side = crop * pixel
        return cls(crop, crop, (width - side) / 2, (height - side) / 2, pixel)

    def in_source(self, box: Box) -> Box:
        """A box given in pixels of the frame, in pixels of the source."""
        left, top, right, bottom = (edge * self.pixel for edge in box)
        return self.left + left, self.top + top, self.left + right, self.top + bottom

    @property
    def whole(self) -> Box:
        """The frame itself as a box in its own pixels."""
        return 0.0, 0.0, self.width, self.height


def check_frame(resize: int | None, crop: int | None) -> None:
    """Refuse sizes that can never make a frame.

    Raises:
        ValueError: a size below 1, or a crop that exceeds the resized shorter side.
    """
    for name, value in (("resize", resize), ("crop", crop)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1 pixel or None, got {value}")
    if resize is not None and crop is not None and crop > resize:
        raise ValueError(
            f"crop={crop} exceeds the shorter side that resize={resize} leaves; nothing is padded"
        )


def resample(image: Image.Image, box: Box, size: tuple[int, int], flip: bool) -> Image.Image:
    """Read a box of an image at a new size, optionally mirrored left to right.

    The box is honoured to a fraction of a pixel: the centre of output pixel j lies at
    ``left + (j + 1/2) (right - left) / width``, pixel centres being at half-integers. The
    bilinear (triangle) filter widens with the scale, which antialiases.

    Args:
        image: any mode whose values are intensities ("RGB", "L", "F").
        box: inside the image, in its pixels.
        size: height and width of the output.
        flip: mirror the output.
    """
    height, width = size
    # A rounding error must not put an edge outside the image, which Pillow refuses.
    box = (round(box[0], 6), round(box[1], 6), round(box[2], 6), round(box[3], 6))
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def to_normalised(image: Image.Image) -> Tensor:
    """(3, H, W) float32 of an 8-bit RGB image, with ImageNet's mean and deviation normalised."""
    pixels = TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True)
    return TF.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=True)


def to_image(normalised: Tensor) -> Image.Image:
    """The 8-bit RGB image behind a normalised one (3, H, W), as `to_normalised` makes it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    levels = ((normalised.cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def nearest(length: int, low: float, high: float) -> np.ndarray:
    """Pixels that hold the centres of `length` equal cells between two edges, (length,) int64."""
    return np.floor(low + (np.arange(length) + 0.5) * ((high - low) / length)).astype(np.int64)
