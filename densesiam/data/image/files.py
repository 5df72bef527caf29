"""Image files: finding them in a folder, and reading every kind of them to 8-bit RGB or labels."""

import os
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from densesiam.data.image.values import is_tiff, png_chunks, tiff_size, tiff_to_rgb, to_rgb

EXTENSIONS = frozenset(
    [
        *(".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
        *([".avif"] if features.check("avif") else []),
    ]
)

# Photographs' sides by the EXIF tag "orientation": 1 is upright.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Up to here an image is turned in memory, where it then is twice: 256 MB more, at Pillow's four
# bytes a pixel. What is larger goes through a file, in strips of this many pixels.
_TURNED_IN_MEMORY = 1 << 26  # pixels
_STRIP = 1 << 20  # pixels
# What has several pictures in one file. A phone's MPO is none: its further ones are previews.
_WITH_PAGES = {"TIFF": "page", "GIF": "frame", "WEBP": "frame", "PNG": "frame", "AVIF": "frame"}

# A network's file system may be away for a moment. Where waiting has been in vain, files are gone,
# and the next ones are not waited for.
_WAITS = (0.1, 0.4, 1.5)  # seconds
_IN_VAIN = 60.0  # seconds

# What tells folders of this package's results: predictions, a run, a validation.
PREDICTIONS = "predictions.jsonl"
_OWN = ({PREDICTIONS}, {"config.yaml", "checkpoints"}, {"report.html", "scores.json"})

_Content = TypeVar("_Content")


class ImageReadError(OSError):
    """An image or label file that is missing, damaged or of a kind that cannot be read."""


@dataclass
class Scan:
    """What lies under a folder.

    Attributes:
        root: the folder.
        images: files with one of `EXTENSIONS`, sorted by their path within the folder.
        others: how many files of each other kind, by extension; "" for files without one.
        repeated: links to files and folders that were found under another name.
        own: folders of results that this package has written, which are passed over.
        closed: folders below it that cannot be looked into, and why.
    """

    root: Path
    images: list[Path] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    repeated: list[Path] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)
    closed: dict[Path, str] = field(default_factory=dict)


def scan_folder(root: str | Path, links: Literal["once", "each"] = "once") -> Scan:
    """Look for image files under a folder, at any depth.

    A file counts by its extension (one of `EXTENSIONS`, in either case); hidden files and folders
    do not count, nor do folders below it of results that this package has written. Symbolic links
    are followed, and never in a circle. No file is opened.

    Args:
        root: the folder.
        links: "once" takes no file twice that links give several names (files and folders are told
            apart by device and inode; of several names the one without a link counts); "each"
            takes each name, as for labels that several images share.

    Raises:
        FileNotFoundError: the folder does not exist.
        NotADirectoryError: the path is a file.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"no such folder of images: {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got a file: {root}")
    scan = Scan(root)
    seen: set[tuple[int, int]] = set()

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, Any]]:
        """Take a folder's files; yield the links in it, to be followed after all else."""
        here = _identity(folder)
        if here in above or (links == "once" and here in seen):
            scan.repeated.append(folder)
            return
        seen.add(here)
        try:
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if not above:
                raise
            scan.closed[folder] = error.strerror or str(error)
            return
        found.sort(key=lambda entry: entry.name)
        names = {entry.name for entry in found}
        if above and any(marks <= names for marks in _OWN):
            scan.own.append(folder)
            return
        for entry in found:
            path = folder / entry.name
            if entry.is_symlink():
                yield path, above | {here}
            elif entry.is_dir():
                yield from walk(path, above | {here})
            else:
                take(path)

    def take(path: Path) -> None:
        kind = path.suffix.lower()
        if kind not in EXTENSIONS:
            scan.others[kind] = scan.others.get(kind, 0) + 1
            return
        if links == "once" and path.exists():
            if path.is_symlink() and _identity(path) in seen:
                scan.repeated.append(path)
                return
            seen.add(_identity(path))
        scan.images.append(path)

    waiting = list(walk(root, frozenset()))
    while waiting:
        path, above = waiting.pop(0)
        if path.is_dir():
            waiting += walk(path, above)
        else:
            take(path)
    scan.images.sort(key=lambda path: path.relative_to(root).parts)
    return scan


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def find_images(root: str | Path, links: Literal["once", "each"] = "once") -> list[Path]:
    """All image files under a folder, at any depth, sorted by their path within it.

    See `scan_folder` for what counts.

    Args:
        root: the folder.
        links: whether several names of one file count once or each.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no image.
        NotADirectoryError: the path is a file.
    """
    scan = scan_folder(root, links)
    for folder, reason in scan.closed.items():
        warnings.warn(f"{folder} cannot be looked into: {reason}", stacklevel=2)
    if not scan.images:
        others = sum(scan.others.values())
        content = f"it holds {others} other files" if others else "it is empty"
        extensions = " ".join(sorted(EXTENSIONS))
        raise FileNotFoundError(f"no images in {root}: {content}; expected any of {extensions}")
    return scan.images


def read_image(
    path: str | Path, max_pixels: int | None = None, upright: bool = True
) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    The EXIF orientation is applied. Transparent pixels are laid over white, since the colours
    stored beneath them were never meant to be seen. What more than 8 bits mean is said in
    `densesiam.data.image.values`. Of several pages or frames, the first is read. A file that the
    system cannot give is tried again, for two seconds in all; where that was in vain, others are
    tried once for a minute.

    Args:
        path: the file.
        max_pixels: refuse what is larger, before it is decoded; None takes Pillow's own limit.
        upright: apply the EXIF orientation; otherwise pixels stay as they are stored.

    Raises:
        ImageReadError: the file cannot be decoded, is too large, or has values of no known range.
    """
    return Patience.read(path, "image", lambda p: _decode_image(p, max_pixels, upright))


def _decode_image(path: str | Path, max_pixels: int | None, upright: bool) -> Image.Image:
    with _opened(path, max_pixels) as file:
        image = to_rgb(file, Path(path)) if file else tiff_to_rgb(Path(path))
        # Asked for now: Pillow has turned a TIFF that it has loaded, and no longer says so.
        orientation = file.getexif().get(_ORIENTATION, 1) if file else 1
    if not upright or orientation not in _TURNS:
        return image
    if image.width * image.height > _TURNED_IN_MEMORY:
        store, size = _store_turned(image, orientation), image.size
        if store is not None:
            del file, image  # before there is another of its size
            with store:
                return _read_turned(store, size, orientation)
    image.getexif()[_ORIENTATION] = orientation  # what was converted may have lost it
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _store_turned(image: Image.Image, orientation: int) -> IO[bytes] | None:
    """Write an RGB image to a nameless file in strips, each of them turned.

    None where the disk has no room for it.
    """
    store: IO[bytes] | None = None
    try:
        store = tempfile.TemporaryFile()  # noqa: SIM115  # it is whoever reads it that closes it
        for top, bottom in _strips(image.size):
            strip = image.crop((0, top, image.width, bottom))
            store.write(strip.transpose(_TURNS[orientation]).tobytes())
        store.seek(0)  # which writes what is still waiting
    except OSError:
        if store is not None:
            with suppress(OSError):  # it tries to write once more
                store.close()
        return None
    return store


def _read_turned(store: IO[bytes], size: tuple[int, int], orientation: int) -> Image.Image:
    """Put the strips together that `_store_turned` has written of an image of this size."""
    width, height = size
    sideways = orientation in (5, 6, 7, 8)
    turned = Image.new("RGB", (height, width) if sideways else size)
    for top, bottom in _strips(size):
        # Where the last row becomes the first, or its column.
        low = height - bottom if orientation in (3, 4, 6, 7) else top
        strip = (bottom - top, width) if sideways else (width, bottom - top)
        pixels = store.read(3 * width * (bottom - top))
        turned.paste(Image.frombytes("RGB", strip, pixels), (low, 0) if sideways else (0, low))
    return turned


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First row, and the row after the last, of each strip of an image."""
    width, height = size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield top, min(height, top + rows)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before it is decoded.

    Attributes:
        size: width and height of the upright image, in pixels.
        stored: the same of the pixels as `read_image` gives them with ``upright=False``.
        turned: whether its EXIF orientation is another than upright.
        pages: pictures in the file.
        page: what these are called: "page" or "frame".
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    turned: bool
    pages: int
    page: str


def read_header(path: str | Path) -> Header:
    """Read what a file says of itself, without decoding it.

    Raises:
        ImageReadError: the file cannot be opened as an image.
    """

    def read(path: str | Path) -> Header:
        with _opened(path, None, checked=False) as file:
            if file is None:
                size = tiff_size(Path(path))
                return Header(size, size, False, 1, "page")
            orientation = _exif(file, Path(path)).get(_ORIENTATION, 1)
            width, height = file.size
            # A TIFF's size is told upright already.
            if orientation in (5, 6, 7, 8) and file.format != "TIFF":
                width, height = height, width
            page = _WITH_PAGES.get(file.format or "", "")
            pages = getattr(file, "n_frames", 1) if page else 1
            return Header((width, height), file.size, orientation in range(2, 9), pages, page)

    return Patience.read(path, "image", read)


def _exif(file: Image.Image, path: Path) -> Image.Exif:
    """The EXIF data of a file that was opened, without decoding it.

    A PNG may have them behind its pixels, and Pillow would decode all to get there.
    """
    if file.format != "PNG":
        return file.getexif()
    exif = Image.Image.getexif(file)  # of what stands before the pixels
    if not exif:
        for kind, length, stream in png_chunks(path):
            if kind == b"eXIf":
                exif.load(b"Exif\0\0" + stream.read(length))
    return exif


@contextmanager
def _opened(
    path: str | Path, max_pixels: int | None, checked: bool = True
) -> Iterator[Image.Image | None]:
    """Open an image file, under a limit of ours in place of Pillow's where there is one.

    Yields:
        The image; None for a TIFF of a kind that Pillow does not know.

    Raises:
        ValueError: the image is larger; or see `open_picture`.
    """
    # Pillow has one limit for all threads of a process, and no argument.
    before = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None or not checked:
        Image.MAX_IMAGE_PIXELS = None
    try:
        try:
            opened = open_picture(path)
        except UnidentifiedImageError:
            if not is_tiff(Path(path)):
                raise
            opened = None
        with opened or nullcontext() as file:
            width, height = file.size if file else tiff_size(Path(path))
            if max_pixels is not None and width * height > max_pixels:
                raise ValueError(
                    f"{width} x {height} pixels are more than the limit of {max_pixels:,}"
                )
            yield file
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_picture(path: str | Path) -> Image.Image:
    """Open a file with Pillow.

    Raises:
        ValueError: what is there is no file, or a program.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # to open a pipe would wait for ever
        raise ValueError("a pipe, a socket or a device; expected a file")
    file = Image.open(path)
    if file.format == "EPS":  # which Pillow would have run
        file.close()
        raise ValueError("PostScript is a program, and no picture")
    return file


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


def read_label(
    path: str | Path,
    colours: Sequence[tuple[int, int, int]] | None = None,
    upright: bool = True,
) -> np.ndarray:
    """Read a label image as it is: (H, W) of integers, palette indices where it has a palette.

    A file that the system cannot give is tried again, as by `read_image`.

    Args:
        path: the file.
        colours: (red, green, blue), 0 to 255: the file is an RGB picture, and the label of a pixel
            is the number of its colour among these.
        upright: apply the file's EXIF orientation, if it has one.

    Raises:
        ImageReadError: the file cannot be decoded, has several channels but no colours are given,
            or holds other colours.
    """
    return Patience.read(path, "label", lambda p: _decode_label(p, colours, upright))


def _decode_label(
    path: str | Path, colours: Sequence[tuple[int, int, int]] | None, upright: bool
) -> np.ndarray:
    with open_picture(path) as file:
        image: Image.Image = file
        if upright:
            image = ImageOps.exif_transpose(image)
        if colours is not None:
            return _numbers_of_colours(np.asarray(image.convert("RGB")), colours)
        values = np.array(image)
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ValueError(
            f"expected one channel of integers (grey or palette), got mode {file.mode}; where "
            "colours stand for classes, give the class table `label_colours`"
        )
    return values.astype(np.int64)


def _numbers_of_colours(pixels: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The number of each pixel's colour (H, W, 3) in a list."""
    shifts = np.array([1 << 16, 1 << 8, 1])
    known = np.array(colours, dtype=np.int64) @ shifts
    order = known.argsort()
    packed = pixels.astype(np.int32) @ shifts.astype(np.int32)
    place = np.searchsorted(known[order], packed).clip(max=len(known) - 1)
    numbers = order[place]
    unknown = known[numbers] != packed
    if unknown.any():
        found = np.unique(pixels[unknown], axis=0)
        listed = ", ".join(str(tuple(colour)) for colour in found[:5].tolist())
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"colours that are not among `label_colours`: {listed}{more}, "
            f"{unknown.mean():.1%} of the pixels (a JPEG's colours are never exact)"
        )
    return numbers
