"""Image files: finding them in a folder, and reading every kind of them to 8-bit RGB or labels."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = frozenset(
    [".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)


# A network's file system may be away for a moment. Where waiting has been in vain, files are gone,
# and the next ones are not waited for.
_WAITS = (0.1, 0.4, 1.5)  # seconds
_IN_VAIN = 60.0  # seconds

_Content = TypeVar("_Content")


class ImageReadError(OSError):
    """An image or label file that is missing, damaged or of a kind that cannot be read."""


def find_images(root: str | Path) -> list[Path]:
    """All image files under a folder, at any depth, sorted by their path within it.

    A file counts by its extension (one of `EXTENSIONS`, in either case); hidden files and folders
    do not count. Symbolic links are followed. No file is opened.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no image.
        NotADirectoryError: the path is a file.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"no such folder of images: {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got a file: {root}")
    found = []
    others = 0
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.append(Path(folder, name))
            else:
                others += 1
    if not found:
        content = f"it holds {others} other files" if others else "it is empty"
        extensions = " ".join(sorted(EXTENSIONS))
        raise FileNotFoundError(f"no images in {root}: {content}; expected any of {extensions}")
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    The EXIF orientation is applied. Transparent pixels are laid over white, since the colours
    stored beneath them were never meant to be seen. 16-bit grey keeps its eight high bits. Of an
    animation, the first frame is read. A file that the system cannot give is tried again, for two
    seconds in all; where that was in vain, others are tried once for a minute.

    Raises:
        ImageReadError: the file cannot be decoded, or its values have no known range (32-bit
            integers beyond 16 bits, floating point).
    """
    return Patience.read(path, "image", _decode_image)


def _decode_image(path: str | Path) -> Image.Image:
    with Image.open(path) as file:
        return to_rgb(ImageOps.exif_transpose(file))


class Patience:
    """Read files, with a second and a third try where the system fails."""

    lost = -_IN_VAIN
    """When waiting was in vain, by `time.monotonic`."""

    @classmethod
    def read(
        cls, path: str | Path, kind: str, decode: Callable[[str | Path], _Content]
    ) -> _Content:
        """Decode a file.

        Args:
            path: the file.
            kind: of what, for the message.
            decode: opens and decodes it.

        Raises:
            ImageReadError: it cannot be read.
        """
        patient = time.monotonic() - cls.lost >= _IN_VAIN
        waits = iter(_WAITS if patient else ())
        while True:
            try:
                return decode(path)
            except MemoryError:
                raise
            except Exception as error:  # decoders meet damaged files with exceptions of every kind
                # The system's errors have a number, a decoder's have none.
                of_system = isinstance(error, OSError) and error.errno is not None
                wait = next(waits, None) if of_system else None
                if wait is None:
                    if of_system and patient:
                        cls.lost = time.monotonic()
                    raise ImageReadError(f"cannot read {kind} {path}: {error}") from error
            time.sleep(wait)  # a file system that is away for a moment comes back


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a decoded image, as `read_image` describes it; ValueError of its values."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"integer values from {values.min()} to {values.max()} exceed 16 bits; "
                "convert it to 8 or 16 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no set range; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def read_label(path: str | Path) -> np.ndarray:
    """Read a label image as it is: (H, W) of integers, palette indices where it has a palette.

    A file that the system cannot give is tried again, as by `read_image`.

    Raises:
        ImageReadError: the file cannot be decoded, or has several channels.
    """
    return Patience.read(path, "label", _decode_label)


def _decode_label(path: str | Path) -> np.ndarray:
    with Image.open(path) as file:
        values = np.array(file)
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ValueError(
            f"expected one channel of integers (grey or palette), got mode {file.mode}"
        )
    return values.astype(np.int64)
