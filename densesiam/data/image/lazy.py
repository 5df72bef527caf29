"""Image files decoded no finer than what is read from them needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from densesiam.data.image.files import Patience, open_picture, read_image
from densesiam.data.image.frame import Box, resample

Decode = Literal["reduced", "full"]
"""Whether a file may be decoded at a reduction that what is read from it allows."""

MARGIN = 1.5
"""Pixels of the decoded image in a pixel that is read, at least, where it was reduced."""

_REDUCTIONS = (8, 4, 2)
_PIXEL = 4  # bytes, in which Pillow holds red, green and blue


class Part(NamedTuple):
    """A box to read from an image, see `resample`."""

    box: Box
    """In pixels of the source, upright and at its full size."""
    size: tuple[int, int]
    """Height and width of what is read."""
    flip: bool
    """Whether it is mirrored left to right."""

    @property
    def pixel(self) -> float:
        """Pixels of the source in one that is read, along the side with fewer."""
        left, top, right, bottom = self.box
        height, width = self.size
        return min((right - left) / width, (bottom - top) / height)


class LazyImage:
    """An image file, upright 8-bit RGB, that is decoded once it is known how finely.

    A JPEG holds blocks of 8 x 8 pixels as frequencies. Without the high ones it decodes to 1/2, 1/4
    or 1/8 of its size in a fraction of the time, which no part that is much smaller than what it
    shows can tell from the whole. Files of other kinds are decoded at once.

    Args:
        path: the file.
        upright: apply the EXIF orientation, as for `read_image`.

    Raises:
        ImageReadError: as by `read_image`; a damaged JPEG may raise only when it is decoded.
    """

    def __init__(self, path: str | Path, upright: bool = True) -> None:
        self.path = Path(path)
        self._upright = upright
        self._orientation = 1
        self._whole: Image.Image | None = None
        self._reductions: dict[int, tuple[Image.Image, float, float]] = {}
        self._told = 0
        size = Patience.read(path, "image", self._look)
        if size is None:
            self._whole = read_image(path, upright=upright)
            size = self._whole.size
        self.size: tuple[int, int] = size
        """Width and height."""

    @property
    def width(self) -> int:
        """In pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.size[1]

    def grown(self) -> int:
        """Bytes of what it has decoded since this was asked last; it decodes nothing twice."""
        decoded = [image for image, _, _ in self._reductions.values()]
        if self._whole is not None:
            decoded.append(self._whole)
        held = sum(_PIXEL * image.width * image.height for image in decoded)
        grown, self._told = held - self._told, held
        return grown

    def decode(self) -> Image.Image:
        """The whole image at its own size, as by `read_image`."""
        if self._whole is None:
            self._whole = read_image(self.path, upright=self._upright)
        return self._whole

    def read(self, parts: Sequence[Part], decode: Decode = "reduced") -> list[Image.Image]:
        """Read parts of the image; "reduced" decodes it at the largest reduction they all allow.

        A reduction leaves `MARGIN` decoded pixels or more in each pixel that is read, along both
        sides: then what is read differs by less than between two usual antialiasing filters
        (Hamming's and the triangle). Boxes are honoured at every reduction as `resample` does.

        Raises:
            ImageReadError: as by `read_image`.
        """
        finest = min(part.pixel for part in parts)
        reduction = next((r for r in _REDUCTIONS if r * MARGIN <= finest), 1)
        if reduction == 1 or decode == "full" or self._whole is not None:
            return [resample(self.decode(), *part) for part in parts]
        if reduction not in self._reductions:
            self._reductions[reduction] = Patience.read(
                self.path, "image", lambda path: self._reduced(path, reduction)
            )
        image, left, top = self._reductions[reduction]
        shift = (left, top, left, top)
        read = []
        for part in parts:
            low_x, low_y, high_x, high_y = (
                offset + edge / reduction for offset, edge in zip(shift, part.box, strict=True)
            )
            read.append(resample(image, (low_x, low_y, high_x, high_y), part.size, part.flip))
        return read

    def _look(self, path: str | Path) -> tuple[int, int] | None:
        """Width and height of a JPEG, from its head; None for files of other kinds."""
        try:
            file = open_picture(path)
        except UnidentifiedImageError:  # some of them, `read_image` knows all the same
            return None
        with file:
            if not isinstance(file, JpegImageFile):
                return None
            if self._upright:
                self._orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
            width, height = file.size
        return (height, width) if self._orientation in (5, 6, 7, 8) else (width, height)

    def _reduced(self, path: str | Path, reduction: int) -> tuple[Image.Image, float, float]:
        """The image at 1 / reduction, and where in it the source's left and top lie.

        A last block that the source fills in part is whole in the reduced image. Where the
        orientation turns that end to the left or the top, the source begins after its rest.
        """
        with Image.open(path) as file:
            width, height = file.size
            file.draft(None, (width // reduction, height // reduction))
            if file.size != (-(-width // reduction), -(-height // reduction)):
                raise ValueError(f"1/{reduction} of {width} x {height} pixels came as {file.size}")
            right, bottom = (
                decoded - length / reduction
                for decoded, length in zip(file.size, (width, height), strict=True)
            )
            image = ImageOps.exif_transpose(file) if self._upright else file
            image = image.convert("RGB")
        # EXIF's orientations: 2 and 4 mirror, 3 turns by 180 degrees, 6 and 8 by 90 clockwise and
        # back; 5 and 7 mirror along a diagonal.
        left = {2: right, 3: right, 6: bottom, 7: bottom}.get(self._orientation, 0.0)
        top = {3: bottom, 4: bottom, 7: right, 8: right}.get(self._orientation, 0.0)
        return image, left, top


def check_decode(decode: str) -> None:
    """Refuse what is no `Decode`.

    Raises:
        ValueError: neither "reduced" nor "full".
    """
    if decode not in get_args(Decode):
        raise ValueError(f'decode must be "reduced" or "full", got {decode!r}')


def read_parts(
    image: Image.Image | LazyImage, parts: Sequence[Part], decode: Decode = "reduced"
) -> list[Image.Image]:
    """Parts of an image, by `resample`; see `LazyImage.read` for one that is not decoded yet."""
    if isinstance(image, LazyImage):
        return image.read(parts, decode)
    return [resample(image, *part) for part in parts]
