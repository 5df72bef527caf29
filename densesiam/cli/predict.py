"""``densesiam predict``: segment photographs with a trained model."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from torch import nn

from densesiam import __version__
from densesiam._writing import printable
from densesiam.cli.segmenters import Head, Trained, load_segmenter
from densesiam.data.image.files import Header, ImageReadError, read_header, read_image
from densesiam.data.sets.gathered import Gathered, Photo, gather
from densesiam.methods.whole import WholeImages
from densesiam.models.inference import fold_normalisation, in_bfloat16
from densesiam.reports.annotations import Form, write_annotations
from densesiam.reports.naming import Categories, read_categories
from densesiam.reports.prediction import PredictionWriter, Unused
from densesiam.reports.record import Record, fingerprint, is_unfinished
from densesiam.reports.validation import read_matching
from densesiam.training.console import Interrupted, interactive, say
from densesiam.training.folders import choose_folder, make_folder
from densesiam.training.interrupts import Signals
from densesiam.training.launch import join
from densesiam.training.lock import Lock
from densesiam.training.options import TrainerOptions, probe
from densesiam.training.precision import AUTO, BFLOAT16, FLOAT32, quickest

Precision = Literal["auto", "32-true", "bf16-mixed"]

USAGE = "CHECKPOINT IMAGES [IMAGES ...] [--output FOLDER] [--resize PIXELS] [other settings]"

_DEFAULT = "outputs/predictions"
_MAX_PIXELS = 178_956_970  # twice what Pillow warns of, where it refuses
# Of images of up to so many pixels one is read, and one is written, while the network works on
# another; of larger ones, there is but one in memory.
_BESIDE = 1 << 24


class Unsegmented(RuntimeError):  # noqa: N818 # the rest is there
    """Some images could not be segmented.

    Attributes:
        code: what the process ends with.
    """

    code = 3


@dataclass(frozen=True)
class Settings:
    """How to segment; see ``densesiam predict --help``.

    Raises:
        ValueError: a setting that is out of range, or two that do not go together.
    """

    resize: int | None = None
    large: Literal["tile", "reduce"] = "tile"
    tile: int = 1024
    overlap: int = 256
    max_pixels: int = _MAX_PIXELS
    head: Head = "main"
    names: Path | None = None
    matching: Path | None = None
    confidence: bool = False
    format: Sequence[Form] = ()
    errors: Literal["list", "raise"] = "list"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        least = {"resize": 1, "tile": 2, "overlap": 1, "max_pixels": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"--{name} must be at least {bound}, got {value}")
        if self.overlap >= self.tile:
            default = ", the default" if self.overlap == Settings.overlap else ""
            raise ValueError(
                f"--overlap must be from 1 to {self.tile - 1}, which is --tile less 1, got "
                f"{self.overlap}{default}"
            )
        if self.names is not None and self.matching is not None:
            raise ValueError("--names and --matching both name the categories: give one of them")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("checkpoint", type=str, help="The trained model, a .ckpt file.")
    parser.add_argument(
        "images",
        type=str,
        nargs="+",
        help="Folders of images, image files, patterns such as 'day*/*.jpg', or \"samples\" for "
        "nine photographs.",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="Folder for the results; one that this command has begun is gone on with. Default: "
        f"{_DEFAULT}, numbered where it is taken.",
    )
    parser.add_argument(
        "--resize",
        type=int | None,
        help="Shorter side that the network sees, in pixels. Default: as the model was trained.",
    )
    parser.add_argument(
        "--large",
        type=Literal["tile", "reduce"],
        default="tile",
        help="What becomes of images that are then larger than --tile: overlapping tiles whose "
        "logits are blended, or a smaller image.",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=1024,
        help="Longest side that the network sees at once, 2 or more.",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=256,
        help="Least overlap of tiles, in pixels: from 1 to --tile less 1.",
    )
    parser.add_argument(
        "--max_pixels",
        type=int,
        default=_MAX_PIXELS,
        help="Images of more pixels are listed, and not segmented.",
    )
    parser.add_argument(
        "--errors",
        type=Literal["list", "raise"],
        default="list",
        help="list goes on after an image that cannot be segmented, lists it with the reason, and "
        f"ends with code {Unsegmented.code}; raise ends there.",
    )
    parser.add_argument(
        "--head",
        type=Head,
        default="main",
        help="aux takes the over-clustering head, with model.aux_classes categories.",
    )
    parser.add_argument(
        "--names",
        type=str | None,
        help="YAML file that names, merges and drops categories; each prediction writes one to be "
        "filled in, names.yaml.",
    )
    parser.add_argument(
        "--matching",
        type=str | None,
        help="The scores.json of a validation of this model: categories are called after the "
        "classes that they were matched to.",
    )
    parser.add_argument(
        "--confidence",
        type=bool,
        default=False,
        help="Write how sure the model is of each pixel too.",
    )
    parser.add_argument(
        "--format",
        type=Form,
        nargs="+",
        default=[],
        help="What to write beside label PNGs: coco (run lengths), coco-polygons, labelme. Can be "
        "asked for afterwards too.",
    )
    parser.add_argument(
        "--accelerator",
        type=Literal["auto", "cpu", "gpu"],
        default="auto",
        help="What to compute on; auto takes a GPU where there is one.",
    )
    parser.add_argument(
        "--precision",
        type=Precision,
        default="auto",
        help="What the network computes in. bf16-mixed is quicker where the device has bfloat16, "
        "and changes labels where categories are close; auto takes it there, and goes on with what "
        "a prediction began with. 32-true is float32.",
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    given = {name: config[name] for name in Settings.__dataclass_fields__}
    for name in ("names", "matching"):
        given[name] = None if given[name] is None else Path(given[name])
    settings = Settings(**given)
    join(probe(TrainerOptions(accelerator=config.accelerator, devices=1)), devices=None)
    predict(Path(config.checkpoint), config.images, config.output, settings)


def predict(
    ckpt_path: Path,
    sources: Sequence[str],
    output: str | None = None,
    settings: Settings | None = None,
) -> Path:
    """Segment photographs with a trained model; see `PredictionWriter` for the files.

    What cannot be read, is too large or does not fit into memory is listed in ``summary.json`` and
    on the page. A prediction that was stopped goes on where the settings are the same, as one does
    whose folders have got more images since.

    Args:
        ckpt_path: the trained model.
        sources: what to segment, see `gather`.
        output: the folder; by default ``outputs/predictions``, numbered where it is taken.
        settings: how.

    Returns:
        The folder.

    Raises:
        Interrupted: a signal; the files written so far are kept.
        Unsegmented: all is written, but for images that could not be segmented.
        ValueError: the checkpoint is none, or of another model; or names or matching are; or the
            folder holds predictions with other settings, or another process is at work in it.
        OSError: there are no images; or the folder holds something else, or cannot be written; or,
            with ``errors="raise"``, an image cannot be read.
    """
    settings = settings or Settings()
    trained = load_segmenter(ckpt_path, settings.head)
    categories, named = _categories(trained, settings)
    device = _device(settings.accelerator)
    network = _quick(trained, device)
    segmenter = WholeImages(
        network,
        trained.num_classes,
        trained.model.encoder.stride,
        trained.multiple,
        device,
        trained.resize if settings.resize is None else settings.resize,
        settings.large,
        settings.tile,
        settings.overlap,
        settings.confidence,
    )
    gathered = gather(sources)
    kept = {
        "checkpoint": fingerprint(ckpt_path),
        "resize": segmenter.resize,
        "large": settings.large,
        "tile": settings.tile,
        "overlap": settings.overlap,
        "head": settings.head,
        "confidence": settings.confidence,
        **{
            name: None if (path := getattr(settings, name)) is None else fingerprint(path)
            for name in ("names", "matching")
        },
    }
    folder, record, lock, precision = _open(output, kept, settings.precision, device)
    if precision == BFLOAT16:
        segmenter = replace(segmenter, network=in_bfloat16(network))
    seen = "its own size" if segmenter.resize is None else f"shorter side {segmenter.resize} pixels"
    beyond = (
        f"in tiles of {settings.tile} pixels that overlap by {settings.overlap} and are blended"
        if settings.large == "tile"
        else "made smaller"
    )
    protocol = {
        "from": ", ".join(sources),
        "checkpoint": str(ckpt_path),
        "categories": f"{trained.num_classes}, {named}",
        "resizing": f"{seen}; above {settings.tile} pixels {beyond}; logits enlarged bilinearly to "
        "the source's size, the greatest of a pixel decides",
        "precision": precision,
        "software": f"densesiam {__version__}",
    }
    writer = PredictionWriter(folder, categories, protocol, record)
    signals = Signals()
    with lock, signals.handled():
        try:
            failed = _segment(segmenter, gathered, writer, settings)
            done = [
                record.done[str(photo.path)]
                for photo in gathered.photos
                if str(photo.path) in record.done
            ]
            more = write_annotations(folder, done, categories, settings.format)
            writer.finish(done, _unused(gathered, failed))
        except Interrupted as interrupt:
            count = sum(str(photo.path) in record.done for photo in gathered.photos)
            name = signals.received.name if signals.received else "Ctrl-C"
            raise Interrupted(
                signals.received,
                f"interrupted by {name}: {count} of {len(gathered.photos)} images are done; the "
                "same command goes on",
            ) from interrupt
    say(
        f"wrote {folder}: report.html, labels/, overlays/, contact_sheet.jpg, legend.png, "
        f"{', '.join(['names.yaml, categories.csv, areas.csv, summary.json', *more])}"
    )
    for name, text in _unused(gathered, {}).facts().items():
        say(f"{name}: {text}")
    if failed:
        first = next(iter(failed.items()))
        raise Unsegmented(
            f"{len(failed)} of {len(gathered.photos) + len(gathered.closed)} images could not be "
            "segmented, and "
            f"{folder / 'summary.json'} lists why: {printable(first[0])}: {printable(first[1])}"
            + (" ..." if len(failed) > 1 else "")
        )
    return folder


def _categories(trained: Trained, settings: Settings) -> tuple[Categories, str]:
    """What categories are called, and why."""
    if settings.names is not None:
        return read_categories(settings.names, trained.num_classes), f"named by {settings.names}"
    if settings.matching is not None:
        assignment, classes, learned = read_matching(settings.matching, trained.num_classes)
        return (
            Categories.called(classes, trained.num_classes, assignment),
            "learned without labels; called after the classes that they were matched to in "
            f"{settings.matching} ({learned})",
        )
    if trained.classes is not None:
        return Categories.called(trained.classes, trained.num_classes), "learned from labels"
    return Categories.plain(trained.num_classes), "learned without labels"


def _device(accelerator: str) -> torch.device:
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


def _quick(trained: Trained, device: torch.device) -> nn.Module:
    """The network where it computes, with as little to compute as there can be."""
    network: nn.Module = trained.model.to(device)
    if trained.model.encoder.any_size:
        side = 2 * trained.multiple
        fold_normalisation(network, torch.rand(1, 3, side, side, device=device))
    return network


def _open(
    output: str | None, settings: dict[str, Any], precision: Precision, device: torch.device
) -> tuple[Path, Record, Lock, Precision]:
    """The folder to write to, what is done in it, the hold on it, and what "auto" comes to there.

    Without `output`, that is the first of outputs/predictions, -2, -3 ... which is free, or in
    which a prediction with these settings was stopped, and no other process is at work.
    """
    number = 1
    while output is None:
        folder = Path(_DEFAULT if number == 1 else f"{_DEFAULT}-{number}")
        number += 1
        if is_unfinished(folder):
            with suppress(ValueError):
                return folder, *_begin(folder, settings, precision, device)
        elif not folder.exists() or not any(folder.iterdir()):
            break
    else:
        folder = Path(output)
    if not Record(folder).path.exists():
        choose_folder(str(folder), _DEFAULT)
        make_folder(folder)
    return folder, *_begin(folder, settings, precision, device)


def _begin(
    folder: Path, settings: dict[str, Any], precision: Precision, device: torch.device
) -> tuple[Record, Lock, Precision]:
    """Hold a folder, find out the precision, and begin or go on with its record.

    Raises:
        ValueError: another process is at work there, or there were other settings.
    """
    lock = Lock(folder)
    try:
        record = Record(folder)
        before = record.settings()
        if precision == AUTO:
            precision = before.get("precision", FLOAT32) if before else quickest(device.type)
        # Records of earlier versions have no word for float32.
        said = precision != FLOAT32 or not before or "precision" in before
        record.open({**settings, "precision": precision} if said else settings)
    except BaseException:
        lock.release()
        raise
    return record, lock, precision


def _unused(gathered: Gathered, failed: dict[str, str]) -> Unused:
    return Unused(
        failed,
        gathered.others,
        [str(path) for path in gathered.repeated],
        [str(path) for path in gathered.own],
    )


@dataclass(frozen=True)
class _Read:
    """A photograph as it was read."""

    photo: Photo
    stamp: tuple[int, int]
    image: Image.Image
    note: str


def _read(photo: Photo, header: Header | None, max_pixels: int) -> _Read:
    status = photo.path.stat()
    header = header or read_header(photo.path)
    image = read_image(photo.path, max_pixels)
    note = (
        f"{header.page}s 2 to {header.pages}" if header.pages > 2 else f"{header.page} 2"
    ) + " not used"
    stamp = (status.st_size, status.st_mtime_ns)
    return _Read(photo, stamp, image, note if header.pages > 1 else "")


def _segment(
    segmenter: WholeImages, gathered: Gathered, writer: PredictionWriter, settings: Settings
) -> dict[str, str]:
    """Segment what is not done yet; return why some could not be, by their paths."""
    record, photos = writer.record, gathered.photos
    failed = {str(path): reason for path, reason in gathered.closed.items()}
    for path, reason in failed.items():
        if settings.errors == "raise":
            raise PermissionError(f"cannot look into {path}: {reason}")
        say(f"not looked into: {path}: {reason}")
    waiting = [photo for photo in photos if not _is_done(photo, record)]
    if len(waiting) < len(photos):
        say(f"{len(photos) - len(waiting)} of {len(photos)} images are done already")
    progress = _Progress(len(waiting))
    with ThreadPoolExecutor(1) as hand:
        writing: Future[None] | None = None
        for photo, reading in _ahead(waiting, settings.max_pixels):
            try:
                read = reading.result()
                found = segmenter(read.image)
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                if settings.errors == "raise":
                    raise
                reason = str(error) or type(error).__name__
                failed[str(photo.path)] = reason.removeprefix(f"cannot read image {photo.path}: ")
                say(f"not segmented: {photo.path}: {failed[str(photo.path)]}")
            else:
                if writing is not None:
                    writing.result()  # raises what went wrong
                writing = hand.submit(writer.add, photo, read.image, found, read.stamp, read.note)
                if math.prod(read.image.size) > _BESIDE:
                    writing.result()
            progress.step()
        if writing is not None:
            writing.result()
    progress.end()
    return failed


def _is_done(photo: Photo, record: Record) -> bool:
    done = record.done.get(str(photo.path))
    if done is None or done.name != photo.name:
        return False
    try:
        status = photo.path.stat()
    except OSError:
        return False
    return done.stamp == (status.st_size, status.st_mtime_ns)


def _ahead(photos: Sequence[Photo], max_pixels: int) -> Iterator[tuple[Photo, "Future[_Read]"]]:
    """Read photographs in another thread, one ahead unless it is large."""
    with ThreadPoolExecutor(1) as reader:
        coming: Future[_Read] | None = None
        header: Header | None = None
        for i, photo in enumerate(photos):
            now = coming or reader.submit(_read, photo, header, max_pixels)
            now.exception()  # read, before the next one is asked for
            coming = None
            if i + 1 < len(photos):
                header = _header(photos[i + 1])
                if header is None or math.prod(header.size) <= _BESIDE:
                    coming = reader.submit(_read, photos[i + 1], header, max_pixels)
            yield photo, now


def _header(photo: Photo) -> Header | None:
    """What a file says of itself; None where it cannot be read, which to read it will explain."""
    try:
        return read_header(photo.path)
    except ImageReadError:
        return None


class _Progress:
    """Tells how far it is: a line that is overwritten on a terminal, else one a minute."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.done = 0
        self.begun = self.told = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        now = time.monotonic()
        live = interactive()
        if now - self.told < (0.2 if live else 60):
            return
        self.told = now
        rate = self.done / (now - self.begun)
        left = (self.count - self.done) / rate
        text = f"{self.done} of {self.count} images, {rate:.1f} a second, {left:.0f} s left"
        if live:
            sys.stdout.write(f"\r{text}\033[K")
            sys.stdout.flush()
        else:
            say(text)

    def end(self) -> None:
        """Leave the line."""
        if interactive() and self.done:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()
