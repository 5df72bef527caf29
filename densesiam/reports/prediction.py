"""What `densesiam predict` leaves: files, and a page of them."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from densesiam._writing import replacing, write_json
from densesiam.data import read_image
from densesiam.reports import page
from densesiam.reports.page import Column, Html
from densesiam.reports.visualize import colorize, contact_sheet, legend, overlay, palette

_MOST_LABELS_OF_A_BYTE = 256
_NO_VOID = -1  # every pixel has a category, 255 among them


class PredictionWriter(BasePredictionWriter):
    """Write label maps and coloured overlays of the source's size, one of each per image.

    Under `folder`:

    - ``labels/<image>.png``: category numbers, 8 bits (16 where there are more than 256);
    - ``overlays/<image>.jpg``: the photograph below the categories' colours;
    - ``legend.png``, ``contact_sheet.jpg``: the colours' numbers; the first images side by side;
    - ``summary.json``, ``categories.csv``: the images, and each category's share of the pixels;
    - ``report.html``: the same as a page, which needs no other file and no network.

    ``<image>`` is the image's path within `root` without extension; images that differ in their
    extension only keep it.

    Args:
        folder: where all of it goes.
        root: folder that the images' names are relative to; None takes their bare names.
        categories: what the K categories are called.
        protocol: how it is made, in words, for the page.
        titles: a name for each image on the contact sheet; by default the file names.
        most_on_sheet: how many images the contact sheet and the page show.
    """

    def __init__(
        self,
        folder: Path,
        root: Path | None,
        categories: Sequence[str],
        protocol: Mapping[str, str],
        titles: Sequence[str] | None = None,
        most_on_sheet: int = 24,
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.root = root
        self.categories = list(categories)
        self.num_categories = len(self.categories)
        self.protocol = protocol
        self.titles = titles
        self.most_on_sheet = most_on_sheet
        self._names: list[Path] = []
        self._usage = torch.zeros(self.num_categories, dtype=torch.int64)
        self._rows: list[list[Image.Image]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the names of all files before the first is written."""
        loader: Any = trainer.predict_dataloaders  # Lightning's type allows nests of loaders
        self._names = output_names(loader.dataset.paths, self.root)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: list[Tensor],
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the files of one batch."""
        for labels, index, path in zip(prediction, batch["index"], batch["path"], strict=True):
            name = self._names[int(index)]
            numbers = labels.cpu().numpy()
            photo = read_image(path)
            painted = overlay(photo, numbers, self.num_categories, ignore_index=_NO_VOID)
            narrow = self.num_categories <= _MOST_LABELS_OF_A_BYTE
            depth = np.uint8 if narrow else np.uint16
            _save(Image.fromarray(numbers.astype(depth)), self.folder / "labels" / f"{name}.png")
            _save(painted, self.folder / "overlays" / f"{name}.jpg", quality=92)
            self._usage += torch.bincount(labels.flatten().cpu(), minlength=self.num_categories)
            if len(self._rows) < self.most_on_sheet:
                # Only as large as they will be shown: full-size photographs would pile up.
                row = [photo, colorize(numbers, self.num_categories, _NO_VOID), painted]
                for picture in row:
                    picture.thumbnail((640, 320))
                self._rows.append(row)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what describes all images together."""
        titles = list(self.titles or [name.as_posix() for name in self._names])[: len(self._rows)]
        sheet = contact_sheet(self._rows, titles, rows_across=2)
        _save(sheet, self.folder / "contact_sheet.jpg", quality=88)
        _save(legend(self.categories), self.folder / "legend.png")
        shares = self._usage / self._usage.sum()
        with (
            replacing(self.folder / "categories.csv") as partial,
            partial.open("w", newline="") as file,
        ):
            rows = zip(range(self.num_categories), self.categories, shares.tolist(), strict=True)
            csv.writer(file).writerows([["category", "name", "pixel_share"], *rows])
        protocol = {"images": self._extent(), **self.protocol}
        write_prediction_page(
            self.folder / "report.html",
            titles,
            self._rows,
            self.categories,
            shares.tolist(),
            protocol,
        )
        write_json(
            self.folder / "summary.json",
            {
                "protocol": protocol,
                "images": [name.as_posix() for name in self._names],
                "categories": self.categories,
                "category_shares": shares.tolist(),
                "categories_used": int((self._usage > 0).sum()),
                "usage_perplexity": float(torch.special.entr(shares).sum().exp()),
            },
        )

    def _extent(self) -> str:
        """How many images there are, and how many of them the page shows."""
        count, shown = len(self._names), len(self._rows)
        return (
            f"{count:,}" if count == shown else f"{count:,}, of which the first {shown} are shown"
        )


def output_names(paths: Sequence[Path], root: Path | None) -> list[Path]:
    """Name the predictions of image files: without extension, unless two would be the same."""
    names = [path.relative_to(root) if root else Path(path.name) for path in paths]
    stems = [name.with_suffix("") for name in names]
    count = Counter(stems)
    return [stem if count[stem] == 1 else name for name, stem in zip(names, stems, strict=True)]


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.save(partial, **options)


def write_prediction_page(
    path: Path,
    names: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    categories: Sequence[str],
    shares: Sequence[float],
    protocol: Mapping[str, str],
) -> None:
    """Write the page of a prediction: categories and their shares, and images beside them.

    Args:
        path: the file.
        names: of the images that `rows` shows.
        rows: photograph, categories and overlay of each.
        categories: what they are called.
        shares: of the pixels of all images, for each category.
        protocol: how it was made, in words.
    """
    colours = palette(len(shares))
    used = [k for k, share in enumerate(shares) if share > 0]
    figures = [
        page.figure(
            page.row([page.picture(page.thumbnail(picture), name, "jpeg") for picture in row]), name
        )
        for name, row in zip(names, rows, strict=True)
    ]
    page.write_page(
        path,
        "Segmentation without labels",
        [
            page.section("How this was made", page.facts(protocol.items())),
            page.section(
                "Images",
                page.paragraph("Photograph, categories, and both together."),
                Html(f'<div class="gallery">{page.join(figures)}</div>'),
                page.legend([(colours[k], categories[k]) for k in used]),
            ),
            page.section(
                "Categories",
                page.paragraph(
                    "The model found these by itself: what a category stands for shows in the "
                    "images. A name, where it has one, is that of the class whose pixels it mostly "
                    "shares in the validation named above."
                ),
                page.table(
                    [Column("category"), Column("pixels, %", "share", "of all images together")],
                    [
                        [page.join([page.swatch(colours[k]), name]), share]
                        for k, (name, share) in enumerate(zip(categories, shares, strict=True))
                    ],
                ),
            ),
        ],
        f"{protocol.get('images', '')}",
    )
