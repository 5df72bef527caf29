"""What `densesiam predict` leaves: files, and pages of them."""

import csv
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densesiam._writing import printable, replacing, write_json
from densesiam.data.sets.gathered import Photo
from densesiam.methods.whole import Segmented
from densesiam.reports import page
from densesiam.reports.label_png import write_label_png
from densesiam.reports.naming import Categories, write_template
from densesiam.reports.page import Cell, Column, Html
from densesiam.reports.record import Done, Record, Typical
from densesiam.reports.visualize import VOID, colorize, contact_sheet, legend

_OPACITY = 0.6  # of the colours over a photograph
_LARGEST = 4096  # longest side of an overlay, in pixels
_THUMBNAIL = 480  # longest side of a picture on a page
_A_PAGE = 24  # images on one
_ON_SHEET = 24
_TYPICAL = 6  # regions of a category in the gallery
_LEAST = 0.3  # their score, as a share of the best one's
_REGION = 1 / 3  # side of such a region, as a share of the image's shorter side
_CELLS = 256  # a side of the map in which such regions are looked for
_ROWS = 1 << 22  # pixels that are counted at once


@dataclass(frozen=True)
class Unused:
    """What was found and not segmented.

    Attributes:
        failed: why an image was not, by its path.
        kinds: how many files of each other kind there were, by extension.
        repeated: links to what was segmented under another name.
        own: folders of this package's results.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    repeated: Sequence[str] = ()
    own: Sequence[str] = ()

    def facts(self) -> dict[str, str]:
        """All but the failures, in words."""
        kinds = ", ".join(
            f"{count} {kind or 'without extension'}" for kind, count in sorted(self.kinds.items())
        )
        found = {
            "files of other kinds, not used": kinds,
            "second names of one file, not used": _listed(self.repeated),
            "results of earlier runs, not used": _listed(self.own),
        }
        return {name: text for name, text in found.items() if text}


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class PredictionWriter:
    """Write label maps and coloured overlays, one of each per image, and what tells of them all.

    Under `folder`, as images are done:

    - ``labels/<image>.png``: category numbers at the source's size, 8 bits (16 where there are more
      than 256), 255 (65535) for pixels in no category, where categories are dropped;
    - ``overlays/<image>.jpg``: the photograph below the categories' colours, no side longer than
      4096 pixels;
    - ``confidence/<image>.png``: where asked for, the softmax's greatest value times 255;
    - ``thumbnails/<image>.jpg``, ``.png``: photograph and colours as the pages show them;
    - ``predictions.jsonl``: what is done, from which a prediction that was stopped goes on.

    In the end:

    - ``report.html``, ``report-2.html`` ...: all images, and a gallery of the categories, on pages
      that need no other file (but each other) and no network;
    - ``summary.json``, ``categories.csv``: the images, what was not segmented and why, and each
      category's share of the pixels and of an image (a large image counts no more than a small);
    - ``areas.csv``: pixels of each category in each image, and the mean confidence;
    - ``legend.png``, ``contact_sheet.jpg``: the colours' names; the first images side by side;
    - ``names.yaml``: to be filled in; see `read_categories`.

    Args:
        folder: where all of it goes; it exists.
        categories: what the model's categories are to the reader.
        protocol: how it is made, in words, for the page.
        record: of the folder, opened.
    """

    def __init__(
        self,
        folder: Path,
        categories: Categories,
        protocol: Mapping[str, str],
        record: Record,
    ) -> None:
        self.folder = folder
        self.categories = categories
        self.protocol = protocol
        self.record = record

    def add(
        self,
        photo: Photo,
        image: Image.Image,
        found: Segmented,
        stamp: tuple[int, int],
        note: str = "",
    ) -> None:
        """Write the files of one image.

        Args:
            photo: which one.
            image: 8-bit RGB.
            found: what the model makes of it.
            stamp: see `Done`.
            note: what of the file is not used, in words.

        Raises:
            OSError: a file cannot be written.
        """
        labels = self.categories.apply(found.labels)
        with self._replacing("labels", f"{photo.name}.png") as partial:
            write_label_png(partial, labels)
        self._save(self._painted(image, labels), "overlays", f"{photo.name}.jpg", quality=92)
        if found.confidence is not None:
            self._save(Image.fromarray(found.confidence), "confidence", f"{photo.name}.png")
        small, numbers = _reduced(image, labels, _THUMBNAIL, gap=1.0)
        self._save(small, "thumbnails", f"{photo.name}.jpg", quality=85)
        # Flat colours: runs are all that there is to find.
        name, runs = f"{photo.name}.png", zlib.Z_RLE
        self._save(self._coloured(numbers), "thumbnails", name, compress_type=runs)
        pixels = _count(labels, len(self.categories.names))
        self.record.add(
            Done(
                path=str(photo.path),
                name=photo.name,
                stamp=stamp,
                size=image.size,
                seen=found.seen,
                tiles=found.tiles,
                pixels=pixels,
                void=labels.size - sum(pixels),
                confidence=float(found.certainty.mean()),
                typical=typical_regions(
                    self.categories.apply(found.cells), found.certainty, len(pixels)
                ),
                note=note,
            )
        )

    def _painted(self, image: Image.Image, labels: np.ndarray) -> Image.Image:
        photo, labels = _reduced(image, labels, _LARGEST)
        painted = Image.blend(photo, self._coloured(labels).convert("RGB"), _OPACITY)
        if self.categories.drops:
            painted.paste(photo, mask=Image.fromarray(labels == self._void))
        return painted

    def _coloured(self, labels: np.ndarray) -> Image.Image:
        """Labels in their colours; with a palette, which is quicker and smaller, where it does."""
        if labels.dtype != np.uint8:
            count, colours = len(self.categories.names), self.categories.colours
            return colorize(labels, count, self._void, colours)
        colours = np.full((256, 3), VOID, dtype=np.uint8)
        colours[: len(self.categories.colours)] = self.categories.colours
        picture = Image.fromarray(labels)
        picture.putpalette(colours.tobytes())
        return picture

    @property
    def _void(self) -> int:
        """The label of no category; where every pixel has one, 255 may be among them."""
        return self.categories.void if self.categories.drops else -1

    def _save(self, picture: Image.Image, kind: str, name: str, **options: Any) -> None:
        with self._replacing(kind, name) as partial:
            picture.save(partial, **options)

    def _replacing(self, kind: str, name: str) -> AbstractContextManager[Path]:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return replacing(path, durable=False)

    # All images together

    def finish(self, done: Sequence[Done], unused: Unused) -> None:
        """Write what describes all images together.

        Args:
            done: the images, in their order.
            unused: what was not segmented.

        Raises:
            OSError: a file cannot be written.
        """
        names = self.categories.names
        pixels = np.array([each.pixels for each in done], dtype=np.int64).reshape(-1, len(names))
        sizes = np.array([each.size[0] * each.size[1] for each in done], dtype=np.int64)
        of_pixels = pixels.sum(axis=0) / max(1, int(sizes.sum()))
        of_images = (pixels / sizes[:, None]).mean(axis=0) if done else np.zeros(len(names))
        with self._table("categories.csv") as rows:
            rows.writerow(["category", "name", "pixel_share", "image_share"])
            rows.writerows(
                zip(range(len(names)), names, of_pixels.tolist(), of_images.tolist(), strict=True)
            )
        with self._table("areas.csv") as rows:
            rows.writerow(["image", "width", "height", "confidence", "no category", *names])
            for each in done:
                confidence = f"{each.confidence:.4f}"
                rows.writerow([each.name, *each.size, confidence, each.void, *each.pixels])
        if done:
            self._write_sheet(done[:_ON_SHEET])
        _save(legend(names, self.categories.colours), self.folder / "legend.png")
        write_template(self.folder / "names.yaml", self.categories, of_images.tolist())
        count = f"{len(done):,}" + (
            f"; {len(unused.failed)} not segmented" if unused.failed else ""
        )
        protocol = {"images": count, **self.protocol}
        self._write_pages(done, protocol, unused, of_pixels, of_images)
        used = torch.from_numpy(of_pixels)
        write_json(
            self.folder / "summary.json",
            {
                "protocol": protocol,
                "images": [each.name for each in done],
                "not_segmented": [
                    {"image": path, "reason": reason} for path, reason in unused.failed.items()
                ],
                "not_used": {
                    "kinds": dict(unused.kinds),
                    "repeated": list(unused.repeated),
                    "own_results": list(unused.own),
                    "parts": {each.name: each.note for each in done if each.note},
                },
                "categories": names,
                "category_shares": of_pixels.tolist(),
                "image_shares": of_images.tolist(),
                "categories_used": int((used > 0).sum()),
                "usage_perplexity": float(torch.special.entr(used).sum().exp()),
            },
        )

    def _table(self, name: str) -> "_Table":
        return _Table(self.folder / name)

    def _thumbnails(self, name: str) -> tuple[Image.Image, Image.Image]:
        """Photograph and colours of an image."""
        pictures = []
        for path in self._thumbnail_files(name):
            with Image.open(path) as file:
                pictures.append(file.convert("RGB"))
        return pictures[0], pictures[1]

    def _thumbnail_files(self, name: str) -> tuple[Path, Path]:
        folder = self.folder / "thumbnails"
        return folder / f"{name}.jpg", folder / f"{name}.png"

    def _write_sheet(self, done: Sequence[Done]) -> None:
        rows = []
        for each in done:
            photo, painted = self._thumbnails(each.name)
            rows.append([photo, painted, Image.blend(photo, painted, _OPACITY)])
        sheet = contact_sheet(rows, [printable(each.name) for each in done], rows_across=2)
        _save(sheet, self.folder / "contact_sheet.jpg", quality=88)

    # Pages

    def _write_pages(
        self,
        done: Sequence[Done],
        protocol: Mapping[str, str],
        unused: Unused,
        of_pixels: np.ndarray,
        of_images: np.ndarray,
    ) -> None:
        count = max(1, -(-len(done) // _A_PAGE))
        files = ["report.html", *(f"report-{i}.html" for i in range(2, count + 1))]
        colours = self.categories.colours
        shown = [k for k, share in enumerate(of_pixels) if share > 0]
        key = page.section(
            "Categories",
            page.legend([(colours[k], self.categories.names[k]) for k in shown]),
        )
        pictures = f"{len(done):,} images"
        if unused.failed:
            pictures += f", {len(unused.failed):,} not segmented"
        for i, file in enumerate(files):
            part = done[i * _A_PAGE : (i + 1) * _A_PAGE]
            first = i * _A_PAGE + 1
            images = page.section(
                "Images" if count == 1 else f"Images {first} to {first + len(part) - 1}",
                page.paragraph(
                    "Left of the slider the photograph, right of it the categories' colours over "
                    "it. Rest the pointer on a colour to read the category's name."
                ),
                page.strength(),
                page.gallery([self._figure(each) for each in part]),
            )
            parts = [key, page.pages(files, i), images, page.pages(files, i)]
            if i == 0:
                parts.insert(1, self._typical(done))
                parts.append(self._shares(of_pixels, of_images))
                parts += self._account(protocol, unused, done)
            page.write_page(
                self.folder / file,
                "Segmentation without labels",
                [
                    *parts,
                    page.names_of_colours(
                        [(colours[k], name) for k, name in enumerate(self.categories.names)]
                    ),
                ],
                f"{pictures}; page {i + 1} of {count}" if count > 1 else pictures,
            )

    def _figure(self, each: Done) -> Html:
        total = max(1, sum(each.pixels) + each.void)
        largest = sorted(range(len(each.pixels)), key=lambda k: -each.pixels[k])[:3]
        areas = ", ".join(
            f"{self.categories.names[k]} {100 * each.pixels[k] / total:.0f} %"
            for k in largest
            if each.pixels[k]
        )
        width, height = each.size
        caption = f"{each.name}: {width} x {height}; {areas}"
        if each.tiles > 1:
            caption += f"; in {each.tiles} tiles"
        if each.note:
            caption += f"; {each.note}"
        photo, painted = self._thumbnail_files(each.name)
        return page.compare(photo, painted, each.name, caption)

    def _typical(self, done: Sequence[Done]) -> Html:
        """The categories' typical regions."""
        colours = self.categories.colours
        regions: dict[int, list[tuple[float, str, Typical]]] = {}
        for each in done:
            for k, found in each.typical.items():
                regions.setdefault(k, []).append((found.score, each.name, found))
        strips = []
        for k in sorted(regions):
            best = sorted(regions[k], key=lambda entry: -entry[0])[:_TYPICAL]
            best = [entry for entry in best if entry[0] >= _LEAST * best[0][0]]
            pictures = [
                page.picture(
                    self._region(name, found, k), f"{self.categories.names[k]}, {name}", "jpeg"
                )
                for _, name, found in best
            ]
            title = page.join([page.swatch(colours[k]), self.categories.names[k]])
            strips.append(page.strip(title, pictures))
        return page.section(
            "What the categories show",
            page.paragraph(
                "The regions where the model is surest of each category, one an image; what "
                "belongs to others is faded. To give the categories names, to make one of several "
                "or to drop some, fill in names.yaml, which lies beside this page, and give it to "
                "the same command as --names."
            ),
            page.strips(strips),
        )

    def _shares(self, of_pixels: np.ndarray, of_images: np.ndarray) -> Html:
        """How much of the images each category has."""
        columns = [
            Column("category"),
            Column("an image, %", "share", "mean over the images, each counting once"),
            Column("pixels, %", "share", "of all images together"),
        ]
        rows: list[list[Cell]] = [
            [
                page.join([page.swatch(self.categories.colours[k]), name]),
                float(of_images[k]),
                float(of_pixels[k]),
            ]
            for k, name in enumerate(self.categories.names)
        ]
        return page.section("Shares", page.table(columns, rows))

    def _region(self, name: str, found: Typical, category: int) -> Image.Image:
        photo, painted = self._thumbnails(name)
        left, top, right, bottom = found.box
        box = (
            int(left * photo.width),
            int(top * photo.height),
            max(int(left * photo.width) + 1, round(right * photo.width)),
            max(int(top * photo.height) + 1, round(bottom * photo.height)),
        )
        piece = photo.crop(box)
        of_it = (np.asarray(painted.crop(box)) == self.categories.colours[category]).all(axis=2)
        faded = Image.blend(piece, Image.new("RGB", piece.size, "white"), 0.7)
        faded.paste(piece, mask=Image.fromarray(of_it))
        faded.thumbnail((120, 120))
        return faded

    def _account(
        self, protocol: Mapping[str, str], unused: Unused, done: Sequence[Done]
    ) -> list[Html]:
        """What was not segmented, and how the rest was."""
        parts = []
        if unused.failed:
            rows = [[path, reason] for path, reason in unused.failed.items()]
            parts.append(
                page.section("Not segmented", page.table([Column("image"), Column("reason")], rows))
            )
        pieces = {f"not used of {each.name}": each.note for each in done if each.note}
        facts = {**protocol, **unused.facts(), **pieces}
        parts.append(page.section("How this was made", page.facts(facts.items())))
        return parts


class _Table:
    """A CSV file that is whole at every moment; file names that are no UTF-8 keep their bytes."""

    def __init__(self, path: Path) -> None:
        self._replacing = replacing(path)

    def __enter__(self) -> Any:
        partial = self._replacing.__enter__()
        self._file = partial.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        return csv.writer(self._file)

    def __exit__(self, *error: Any) -> None:
        self._file.close()
        self._replacing.__exit__(*error)


def typical_regions(cells: np.ndarray, certainty: np.ndarray, count: int) -> dict[int, Typical]:
    """The square in which each category is surest and most alone.

    Args:
        cells: (h, w) categories.
        certainty: (h, w) how sure the model is of each, in [0, 1].
        count: categories from this number on are none.

    Returns:
        For each category that occurs, the square with the greatest mean of certainty over its
        cells, the others counting 0.
    """
    step = max(1, -(-max(cells.shape) // _CELLS))
    cells, certainty = cells[::step, ::step], certainty[::step, ::step]
    height, width = cells.shape
    side = max(1, round(_REGION * min(height, width)))
    found = {}
    for k in np.unique(cells).tolist():
        if k >= count:
            continue
        share = np.where(cells == k, certainty, 0).astype(np.float64)
        total = np.zeros((height + 1, width + 1))
        total[1:, 1:] = share.cumsum(axis=0).cumsum(axis=1)
        inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side]
        inside += total[:-side, :-side]
        top, left = np.unravel_index(inside.argmax(), inside.shape)
        found[int(k)] = Typical(
            float(inside[top, left]) / side**2,
            (
                float(left / width),
                float(top / height),
                float((left + side) / width),
                float((top + side) / height),
            ),
        )
    return found


def _count(labels: np.ndarray, categories: int) -> list[int]:
    """Pixels of each category."""
    if labels.dtype == np.uint8:
        return Image.fromarray(labels).histogram()[:categories]
    total = np.zeros(categories, dtype=np.int64)
    # A few rows at a time, as counting widens them to 64 bits.
    rows = max(1, _ROWS // labels.shape[1])
    for i in range(0, labels.shape[0], rows):
        total += np.bincount(labels[i : i + rows].ravel(), minlength=categories)[:categories]
    return total.tolist()


def _reduced(
    image: Image.Image, labels: np.ndarray, longest: int, gap: float = 2.0
) -> tuple[Image.Image, np.ndarray]:
    """Image and labels with no side longer than that, each pixel's label the nearest.

    Args:
        image: the photograph.
        labels: at its size.
        longest: in pixels.
        gap: means over whole pixels may come before the filter, down to so many times the size.
    """
    if max(image.size) <= longest:
        return image, labels
    scale = longest / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    rows, columns = (
        ((np.arange(n) + 0.5) * (length / n)).astype(np.int64)
        for n, length in zip((height, width), labels.shape, strict=True)
    )
    small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=gap)
    return small, labels.take(rows, axis=0).take(columns, axis=1)


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    with replacing(path) as partial:
        picture.save(partial, **options)
