"""Two views of one image that keep their geometry: where each lies in the frame, and its flip."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from densesiam.data.image.frame import Box, Frame, check_frame, to_normalised
from densesiam.data.image.lazy import Decode, LazyImage, Part, check_decode, read_parts
from densesiam.data.image.photometric import MOCO_V2, Photometric
from densesiam.data.order.draws import chance, uniform


class Views(ABC):
    """A random transform from one image to two views and their geometry.

    The result is a dict that torch's default collate stacks into a batch:

    ============ =================== ==========================================================
    view1, view2 (3, h, w) float32   normalised with ImageNet's mean and standard deviation
    crop1, crop2 (4,) float32        left, top, right, bottom of the view, in pixels of the frame
    flip1, flip2 () bool             whether the view is mirrored left to right
    ============ =================== ==========================================================
    """

    redrawn: ClassVar[bool] = True
    """Whether an image gets fresh draws each time; False only where a preset reproduces a fault."""

    lazy: ClassVar[bool] = False
    """Whether it takes files that are not decoded yet, `LazyImage`; else it gets images."""

    @abstractmethod
    def __call__(self, image: Image.Image, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the two views of an 8-bit RGB image; all draws come from the generator."""


@dataclass(frozen=True)
class SegmentationViews(Views):
    """Views of unsupervised segmentation: a random crop, and the whole frame.

    The frame is the source with its shorter side resized and its centre cropped. View 1 is a crop
    of the output's aspect ratio at a continuous position, its sides U(scale_min, 1) times those of
    the largest such crop (for a square frame and output, the frame's side), and perhaps mirrored.
    View 2 is the whole frame, resized to the output; it is never mirrored. Each view gets
    photometric changes of its own, whose blur is counted in pixels of the frame and therefore
    blurs as much of the scene whatever the output size.

    The release differs in small faults, which `OfficialSegmentationViews` reproduces.

    Args:
        size: side of both views, or height and width.
        resize: shorter side of the frame before its crop; None keeps the source's pixels.
        crop: side of the frame's centre crop; None keeps the whole image.
        scale_min: least side of view 1, as a share of the largest crop's.
        p_flip: probability of mirroring view 1.
        photometric: changes of colour and sharpness.
        decode: "reduced" decodes a file no finer than its views need, see `LazyImage`; or "full".

    Raises:
        ValueError: a value out of its range, or (when called) a frame that the image cannot fill.
    """

    lazy: ClassVar[bool] = True

    size: int | tuple[int, int] = 320
    resize: int | None = 640
    crop: int | None = 640
    scale_min: float = 0.5
    p_flip: float = 0.5
    photometric: Photometric = field(default_factory=Photometric)
    decode: Decode = "reduced"

    def __post_init__(self) -> None:
        check_decode(self.decode)
        check_frame(self.resize, self.crop)
        output_size(self.size)
        if not 0 < self.scale_min <= 1:
            raise ValueError(f"scale_min must be in (0, 1], got {self.scale_min}")

    def __call__(
        self, image: Image.Image | LazyImage, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Draw the two views; see `Views`."""
        frame = Frame.of(image.size, self.resize, self.crop)
        height, width = output_size(self.size)
        largest = min(frame.width / width, frame.height / height)
        share = uniform(generator, self.scale_min, 1.0) * largest
        crop1 = place(frame, share * width, share * height, generator)
        flip1 = chance(generator, self.p_flip)
        crops = crop1, frame.whole
        parts = [
            Part(frame.in_source(crop), (height, width), flip)
            for crop, flip in zip(crops, (flip1, False), strict=True)
        ]
        view1, view2 = (
            self._view(view, crop, generator)
            for view, crop in zip(read_parts(image, parts, self.decode), crops, strict=True)
        )
        return pack(view1, crop1, flip1, view2, frame.whole, False)

    def _view(self, view: Image.Image, crop: Box, generator: torch.Generator) -> Tensor:
        left, top, right, bottom = crop
        pixel = math.sqrt((right - left) * (bottom - top) / (view.width * view.height))
        return to_normalised(self.photometric(view, generator, pixel))


@dataclass(frozen=True)
class TwoCrops(Views):
    """Views of pre-training: two random resized crops, each with its own flip and colours.

    Each crop covers a share U(scale) of the source's area, its ratio of width to height is
    log-uniform within `ratio`, and its position is continuous. A draw that does not fit into the
    image is repeated up to ten times; then the largest centred crop within `ratio` is taken. The
    frame is the source itself. Two crops need not overlap.

    Args:
        size: side of both views, or height and width.
        scale: least and greatest share of the area.
        ratio: least and greatest ratio of width to height.
        p_flip: probability of mirroring, for each view.
        photometric: changes of colour and sharpness; blur is counted in the view's pixels, as is
            usual in pre-training.
        decode: "reduced" decodes a file no finer than its views need, see `LazyImage`; or "full".

    Raises:
        ValueError: a value out of its range.
    """

    lazy: ClassVar[bool] = True

    size: int | tuple[int, int] = 224
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    p_flip: float = 0.5
    photometric: Photometric = MOCO_V2
    decode: Decode = "reduced"

    def __post_init__(self) -> None:
        output_size(self.size)
        check_decode(self.decode)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < least <= greatest <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < least <= greatest, got {self.ratio}")

    def __call__(
        self, image: Image.Image | LazyImage, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Draw the two views; see `Views`."""
        frame = Frame.of(image.size, None, None)
        crop1, crop2 = (resized_crop(frame, self.scale, self.ratio, generator) for _ in range(2))
        flip1, flip2 = chance(generator, self.p_flip), chance(generator, self.p_flip)
        parts = [
            Part(crop, output_size(self.size), flip)
            for crop, flip in ((crop1, flip1), (crop2, flip2))
        ]
        view1, view2 = (
            to_normalised(self.photometric(view, generator))
            for view in read_parts(image, parts, self.decode)
        )
        return pack(view1, crop1, flip1, view2, crop2, flip2)


def output_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an output given as one side or as both.

    Raises:
        ValueError: a side below 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return height, width


def resized_crop(
    frame: Frame,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Box:
    """A box of a share U(scale) of the frame's area, as `TwoCrops` describes it.

    Args:
        frame: the image.
        scale: least and greatest share of the area.
        ratio: least and greatest ratio of width to height.
        generator: of the draws.
    """
    least, greatest = (math.log(bound) for bound in ratio)
    for _ in range(10):
        area = uniform(generator, *scale) * frame.width * frame.height
        drawn = math.exp(uniform(generator, least, greatest))
        width, height = math.sqrt(area * drawn), math.sqrt(area / drawn)
        if width <= frame.width and height <= frame.height:
            return place(frame, width, height, generator)
    width = min(frame.width, frame.height * ratio[1])
    height = min(frame.height, frame.width / ratio[0])
    left, top = (frame.width - width) / 2, (frame.height - height) / 2
    return left, top, left + width, top + height


def place(frame: Frame, width: float, height: float, generator: torch.Generator) -> Box:
    """A box of the given size, anywhere within the frame with equal probability."""
    left = uniform(generator, 0.0, frame.width - width)
    top = uniform(generator, 0.0, frame.height - height)
    return left, top, left + width, top + height


def pack(
    view1: Tensor, crop1: Box, flip1: bool, view2: Tensor, crop2: Box, flip2: bool
) -> dict[str, Tensor]:
    """The dict that `Views` promises."""
    return {
        "view1": view1,
        "view2": view2,
        "crop1": torch.tensor(crop1, dtype=torch.float32),
        "crop2": torch.tensor(crop2, dtype=torch.float32),
        "flip1": torch.tensor(flip1),
        "flip2": torch.tensor(flip2),
    }
