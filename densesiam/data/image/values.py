"""What the values of an image file mean: every kind of number to 8-bit RGB.

- 8 bits are taken as they are.
- 16-bit integers keep the eight high bits of those that are in use: what the file declares (PNG's
  sBIT, TIFF's MaxSampleValue), else 12 where no value exceeds 4095, as cameras and microscopes put
  12 bits into 16, else 16. As 16 bits such a picture would be black.
- Floating-point values are shares from 0 to 1, or, where one is above 1, levels from 0 to 255.
  NaN, which stands for no value, becomes white as transparent pixels do.
- Of more than four bands, the first three are red, green and blue where the file says that it is
  RGB; otherwise nobody knows which they are.
"""

import logging
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

_BITS = 16
_OFTEN = 12  # bits that sensors give, in files of 16
_MAX_SAMPLE_VALUE = 281  # a tag of TIFF
_STRIP = 1 << 20  # pixels that are worked on together

# Pillow logs an error for each TIFF of many bands that it refuses, and we then read.
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its errors are raised as well


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Decode an image that was opened from a file, to 8-bit RGB.

    Args:
        image: what Pillow opened; not yet loaded.
        path: the file, for what Pillow drops.

    Raises:
        ValueError: values whose range or meaning is not known.
        OSError: the file is damaged.
    """
    raw = _raw_mode(image)
    if raw[:-1] in ("RGB;16", "RGBA;16"):  # of which Pillow keeps the high byte
        bits = _declared_by_png(path) if image.format == "PNG" else _declared_by_tiff(image)
        return _from_integers(_both_bytes(path, raw), bits)
    if image.mode == "I" or image.mode.startswith("I;16"):
        bits = _declared_by_png(path) if image.format == "PNG" else _declared_by_tiff(image)
        values = np.asarray(image)
        # Pillow brings Netpbm's values to 16 bits, whatever their greatest is.
        return _from_integers(values, _BITS if image.format == "PPM" else bits)
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.has_transparency_data:
        return _over_white(image)
    if image.mode == "RGB":  # which to convert would copy
        try:
            image.load()
        except ValueError:  # Pillow has no way to read planes of 16 bits
            if image.format != "TIFF":
                raise
            return tiff_to_rgb(path)
        return image
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Lay what is transparent over white, in strips: as a whole there would be four of it."""
    opaque = Image.new("RGB", image.size)
    for top, bottom in _strips(image.height, image.width):
        strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        opaque.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return opaque


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _STRIP // width)
    return ((top, min(height, top + rows)) for top in range(0, height, rows))


def _raw_mode(image: Image.Image) -> str:
    """How Pillow is going to read a file's pixels, such as "RGB;16B"."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else None
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def _both_bytes(path: Path, raw: str) -> np.ndarray:
    """(H, W, C) uint16, where Pillow keeps the high byte alone: read once more in the other order.

    Args:
        path: the file.
        raw: its raw mode, which ends in the order of the bytes.
    """
    planes = []
    for order in "BL":
        with Image.open(path) as image:
            tiles: Any = image.tile
            for i, tile in enumerate(tiles):
                mode, *rest = [tile.args] if isinstance(tile.args, str) else tile.args
                swapped = mode[:-1] + order
                tiles[i] = tile._replace(args=(swapped, *rest) if rest else swapped)
            planes.append(np.asarray(image))
    first_is_high = raw[-1] == "B" or (raw[-1] == "N" and sys.byteorder == "big")
    high, low = planes if first_is_high else planes[::-1]
    return high.astype(np.uint16) << 8 | low


def png_chunks(path: Path) -> Iterator[tuple[bytes, int, IO[bytes]]]:
    """The chunks of a PNG: the kind, how many bytes it has, and the file, which stands before them.

    Nothing else of the file is read.
    """
    with path.open("rb") as file:
        place = 8
        while file.seek(place) and len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            yield kind, length, file
            place += length + 12


def _declared_by_png(path: Path) -> int | None:
    """The chunk sBIT: how many bits of each channel are in use."""
    for kind, length, file in png_chunks(path):
        if kind == b"sBIT":
            return max(file.read(length))
        if kind == b"IDAT":
            break
    return None


def _declared_by_tiff(image: Image.Image) -> int | None:
    """The bits of the greatest value that a TIFF says it may have."""
    return _bits_of(getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE))


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_size(path: Path) -> tuple[int, int]:
    """Width and height of a TIFF's first page."""
    with _first_page(path) as page:
        return page.imagewidth, page.imagelength


@contextmanager
def _first_page(path: Path) -> Iterator[Any]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        if not len(file.pages):
            raise ValueError("a TIFF without a page: it is damaged")
        yield file.pages[0]


def tiff_to_rgb(path: Path) -> Image.Image:
    """Decode the first page of a TIFF that Pillow reads in part or not at all.

    Raises:
        ValueError: values whose range or meaning is not known, or a compression that is not.
    """
    import tifffile

    with _first_page(path) as page:
        tags = page.tags
        declared = tags[_MAX_SAMPLE_VALUE].value if _MAX_SAMPLE_VALUE in tags else None
        separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        coloured = page.photometric == tifffile.PHOTOMETRIC.RGB
        if page.samplesperpixel > 2 and not coloured:
            raise ValueError(
                f"{page.samplesperpixel} bands, and the file does not say which are red, green and "
                "blue; write these three to a file of their own"
            )
        values = page.asarray()
    if values.ndim == 3 and separate:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3:
        values = values[:, :, :3] if coloured else values[:, :, 0]
    if values.dtype.kind not in "buif":
        raise ValueError(f"values of type {values.dtype}; convert it to 8 or 16 bits")
    if values.dtype.kind == "f":
        return _from_floats(values)
    if values.dtype == np.uint8:
        return _from_levels(np.ascontiguousarray(values))
    return _from_integers(values, _bits_of(declared))


def _bits_of(greatest: Any) -> int | None:
    return None if greatest is None else int(np.max(greatest)).bit_length()


def _from_integers(values: np.ndarray, bits: int | None) -> Image.Image:
    """8-bit RGB of integers (H, W) or (H, W, 1 to 4), of which so many bits are in use."""
    least, greatest = int(values.min()), int(values.max())
    if least < 0 or greatest >= 1 << _BITS:
        raise ValueError(
            f"integer values from {least} to {greatest} exceed 16 bits; convert it to 8 or 16 bits"
        )
    if bits is None or greatest >= 1 << bits:
        bits = _OFTEN if greatest < 1 << _OFTEN else _BITS
    # Fewer than 8 bits are stretched to the whole range.
    shifted = values >> (bits - 8) if bits >= 8 else values.astype(np.uint32) * 255 // (2**bits - 1)
    levels = shifted.astype(np.uint8)
    return _from_levels(levels)


def _from_floats(values: np.ndarray) -> Image.Image:
    """8-bit RGB of shares from 0 to 1, or levels from 0 to 255."""
    least, greatest = (float(f.reduce(values, axis=None)) for f in (np.fmin, np.fmax))  # not NaN
    if not (least >= 0 and greatest <= 255):
        raise ValueError(
            f"floating-point values from {least:g} to {greatest:g}; expected 0 to 1 or 0 to 255: "
            "convert it to 8 or 16 bits"
        )
    scale = 255.0 if greatest <= 1 else 1.0
    levels = np.empty(values.shape, np.uint8)
    for top, bottom in _strips(*values.shape[:2]):
        strip = values[top:bottom]
        levels[top:bottom] = np.where(np.isnan(strip), 255.0, strip * scale).round()
    return _from_levels(levels)


def _from_levels(levels: np.ndarray) -> Image.Image:
    """An RGB image of (H, W) or (H, W, C): grey, grey and alpha, RGB, RGB and alpha."""
    if levels.ndim == 3 and levels.shape[2] == 1:
        levels = levels[:, :, 0]
    image = Image.fromarray(levels)
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
