"""Image files: finding them in a folder, and reading every kind of them to 8-bit RGB or labels."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = frozenset(
    [".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)


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
    animation, the first frame is read.

    Raises:
        ImageReadError: the file cannot be decoded, or its values have no known range (32-bit
            integers beyond 16 bits, floating point).
    """
    try:
        with Image.open(path) as file:
            return _to_rgb(ImageOps.exif_transpose(file))
    except MemoryError:
        raise
    except Exception as error:  # decoders meet damaged files with exceptions of every kind
        raise ImageReadError(f"cannot read image {path}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
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

    Raises:
        ImageReadError: the file cannot be decoded, or has several channels.
    """
    try:
        with Image.open(path) as file:
            values = np.array(file)
    except MemoryError:
        raise
    except Exception as error:  # as for images
        raise ImageReadError(f"cannot read label {path}: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ImageReadError(
            f"cannot read label {path}: expected one channel of integers (grey or palette), "
            f"got mode {file.mode}"
        )
    return values.astype(np.int64)
