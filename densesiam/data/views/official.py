"""The segmentation views as the authors' release makes them, faults included."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from densesiam.data.image.frame import resample, to_normalised
from densesiam.data.image.photometric import Photometric
from densesiam.data.order.draws import chance, uniform
from densesiam.data.views.paired import Views, pack


@dataclass(frozen=True)
class OfficialSegmentationViews(Views):
    """`SegmentationViews` with the release's quirks, for comparison with its numbers.

    - An image's draws are made once and never renewed, in whichever epoch it comes.
    - The blur's effective sigma is U(0, 1.8).
    - The frame is resized to whole pixels first; colours and blur apply to all of it.
    - View 1 is reduced without antialiasing, view 2 with.
    - The image is cropped at whole pixels, and its features at whole cells, rounded separately.
      View 1 shows the former crop; `crop1` states the latter, in pixels of the frame. Sampling
      view 2's features there is what the release does, misalignment included.

    Args:
        size: side of both views.
        resize: side of the square frame (shorter side resized, centre cropped).
        cells: side of view 2's feature map, in cells.
        scale_min: least side of view 1, as a share of the frame's.
        p_flip: probability of mirroring view 1.
        photometric: changes of colour and sharpness.

    Raises:
        ValueError: a value out of its range.
    """

    redrawn: ClassVar[bool] = False

    size: int = 320
    resize: int = 640
    cells: int = 80
    scale_min: float = 0.5
    p_flip: float = 0.5
    photometric: Photometric = field(default_factory=lambda: Photometric(blur_sigma=(0.0, 1.8)))

    def __post_init__(self) -> None:
        if min(self.size, self.resize, self.cells) < 1:
            raise ValueError(
                "size, resize and cells must be at least 1, "
                f"got {self.size}, {self.resize}, {self.cells}"
            )
        if not 1 / self.cells <= self.scale_min <= 1:
            raise ValueError(f"scale_min must be in [1 / cells, 1], got {self.scale_min}")

    def __call__(self, image: Image.Image, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the two views; see `Views`."""
        frame = _whole_pixel_frame(image, self.resize)
        scale = uniform(generator, self.scale_min, 1.0)
        place = uniform(generator, 0.0, 1.0), uniform(generator, 0.0, 1.0)
        flip1 = chance(generator, self.p_flip)
        shown = self.photometric(frame, generator).crop(_rounded_crop(self.resize, scale, place))
        view1 = F.interpolate(to_normalised(shown)[None], (self.size, self.size), mode="bilinear")[
            0
        ]
        whole = (0, 0, self.resize, self.resize)
        view2 = resample(
            self.photometric(frame, generator), whole, (self.size, self.size), flip=False
        )
        cell = self.resize / self.cells
        left, top, right, bottom = _rounded_crop(self.cells, scale, place)
        stated = (left * cell, top * cell, right * cell, bottom * cell)
        return pack(
            view1.flip(-1) if flip1 else view1, stated, flip1, to_normalised(view2), whole, False
        )


def _whole_pixel_frame(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side and crop the centre, each rounded to whole pixels."""
    scale = side / min(image.size)
    width, height = (max(side, int(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _rounded_crop(
    length: int, scale: float, place: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A square crop of a map of `length` cells, its side rounded down and its place to nearest."""
    side = int(scale * length)
    left, top = (round((length - side) * share) for share in place)
    return left, top, left + side, top + side
