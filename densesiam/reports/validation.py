"""The report of a validation: what was measured and how, as text, tables, pictures and a page."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from densesiam._reading import check_is_file
from densesiam._writing import replacing, write_text
from densesiam.data import ClassTable
from densesiam.evaluation.matching import reorder_clusters
from densesiam.evaluation.metrics import clusters_by_class
from densesiam.reports import page
from densesiam.reports.page import Cell, Column, Html
from densesiam.reports.visualize import contact_sheet, heat_map, legend, overlay, palette

_UNMATCHED = (40, 40, 40)
_LARGEST = 2048  # longest side of an example's pictures, in pixels

_READING = (
    "The model was trained without labels: it sorts pixels into numbered clusters and knows no "
    "names. To score it, each cluster is matched to a class of the labels, and the pixels are "
    "counted.",
    "IoU (intersection over union) of a class: of all pixels that are this class, or were taken "
    "for it, the share that are both. 100 is perfect, 0 means that no pixel is right. mIoU is its "
    "mean over the classes, so that a rare class counts as much as a common one.",
    "Accuracy: of all pixels of a class (or of all labelled pixels), the share that is right. "
    "Common classes decide it.",
    "The last rows of the table hold the mean of the IoU over classes, and the accuracy over all "
    "pixels together.",
    "Things are countable (person, car), stuff is not (sky, road). Their scores count only "
    "confusions within the group.",
)
_LEGACY = (
    "These are things and stuff as the authors' release computes them: it cuts the table by "
    "cluster number, not by class, and so mixes up the two groups. They are wrong, by up to 20 "
    "points, and stand here only to be compared with figures computed in the same way."
)


@dataclass(frozen=True)
class Example:
    """One image of a labelled set, as the model sees it.

    Attributes:
        name: of its file.
        photo: the photograph.
        prediction: (H, W) class numbers; num_classes where the cluster was matched to nothing.
        truth: (H, W) class numbers, or the ignored one.
        miou: of this image, in [0, 1].
        accuracy: of this image, in [0, 1].
    """

    name: str
    photo: Image.Image
    prediction: np.ndarray
    truth: np.ndarray
    miou: float
    accuracy: float


@dataclass(frozen=True)
class ValidationReport:
    """The scores of a model on a labelled set, and all that is needed to know what they mean.

    Attributes:
        scores: what `ClusterMetrics.compute` gives.
        table: what `ClusterMetrics.table` gives.
        classes: of the labels.
        ignore_index: label of void pixels.
        protocol: how it was measured, in words, by the names of the steps.
        best: the images with the highest mIoU.
        worst: those with the lowest, the lowest first.
    """

    scores: Mapping[str, Tensor]
    table: str
    classes: ClassTable
    ignore_index: int
    protocol: Mapping[str, str]
    best: Sequence[Example]
    worst: Sequence[Example]

    def write(self, folder: Path) -> None:
        """Write the report.

        Under `folder`:

        - ``report.html``: all of it on one page, which needs no other file and no network;
        - ``scores.txt``, ``scores.csv``: the protocol and the classes' scores;
        - ``confusion.png``, ``legend.png``: pictures of the table of confusions, and the colours;
        - ``images/``: the best and the worst images, photograph | prediction | truth.

        Args:
            folder: where all of it goes; it exists.
        """
        write_text(folder / "scores.txt", self.text() + "\n")
        self._write_csv(folder / "scores.csv")
        confusion = self._confusion()
        _save(confusion, folder / "confusion.png")
        _save(legend(self._names(), self._colours()), folder / "legend.png")
        self._write_images(folder / "images")
        self._write_page(folder / "report.html", confusion)

    def text(self) -> str:
        """The protocol and the table of scores."""
        width = max(map(len, self.protocol))
        lines = [f"{name:<{width}}  {text}" for name, text in self.protocol.items()]
        legacy = ["", f"(legacy) {_LEGACY}"] if self._legacy else []
        return "\n".join([*lines, "", self.table, *legacy])

    def content(self) -> dict[str, Any]:
        """All of it as plain values, for ``scores.json``; `read_matching` reads them."""
        return {
            "protocol": dict(self.protocol),
            "classes": list(self.classes.names),
            **{name: value.tolist() for name, value in self.scores.items()},
        }

    # Its parts

    @property
    def _legacy(self) -> bool:
        return "legacy_things_miou" in self.scores

    @property
    def _assignment(self) -> np.ndarray:
        return self.scores["assignment"].reshape(-1).numpy()

    @property
    def _has_unmatched(self) -> bool:
        return bool((self._assignment < 0).any())

    def _colours(self) -> np.ndarray:
        """Of the classes, and of what was matched to none."""
        # The table's own colours are not told apart by every reader, nor are they predict's.
        colours = palette(len(self.classes.names))
        return np.concatenate([colours, [_UNMATCHED]]).astype(np.uint8)

    def _names(self) -> list[str]:
        return [*self.classes.names, *(["matched to no class"] if self._has_unmatched else [])]

    def _groups(self) -> list[tuple[str, str]]:
        """Title of each mean, and how the names of its scores begin."""
        if self.classes.things is None:
            return [("all", "")]
        return [("all", ""), ("things", "things_"), ("stuff", "stuff_")]

    def _rows(self) -> list[list[Any]]:
        """Class, kind, clusters, share of pixels, IoU and accuracy of each class."""
        names, things = self.classes.names, self.classes.things
        pixels = self.scores["pixels"].reshape(-1)
        shares = (pixels / pixels.sum()).tolist()
        ious = self.scores["iou"].reshape(-1).tolist()
        accuracies = self.scores["class_accuracy"].reshape(-1).tolist()
        clusters = clusters_by_class(self._assignment.tolist(), len(names))
        return [
            [
                name,
                "" if things is None else "thing" if name in things else "stuff",
                " ".join(map(str, clusters[c])),
                shares[c],
                ious[c],
                accuracies[c],
            ]
            for c, name in enumerate(names)
        ]

    def _write_csv(self, path: Path) -> None:
        with replacing(path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "kind", "clusters", "pixel_share", "iou", "accuracy"])
            for *words, share, iou, accuracy in self._rows():
                writer.writerow([*words, *map(_number, (share, iou, accuracy))])
            prefixes = self._groups()
            if self._legacy:
                prefixes += [
                    (f"{name} (legacy)", f"legacy_{name}_") for name in ("things", "stuff")
                ]
            for title, prefix in prefixes:
                total = [float(self.scores[prefix + name]) for name in ("miou", "accuracy")]
                writer.writerow([title, "group", "", "", *map(_number, total)])

    def _confusion(self) -> Image.Image:
        """The matched table, each row shared out among the predicted classes."""
        names = list(self.classes.names)
        counts = self.scores["confusion"].reshape(len(names), -1).numpy()
        matched = reorder_clusters(counts, self._assignment)
        columns = [*names, "no class"] if self._has_unmatched else names
        with np.errstate(invalid="ignore"):  # a class without pixels has nothing to share out
            shares = matched[:, : len(columns)] / matched.sum(axis=1, keepdims=True)
        return heat_map(shares, names, columns, "true class", "predicted class")

    def _pictures(self, example: Example) -> list[tuple[str, Image.Image]]:
        colours = self._colours()
        count = len(colours)
        step = max(1, -(-max(example.truth.shape) // _LARGEST))
        maps = [each[::step, ::step] for each in (example.prediction, example.truth)]
        photo = example.photo.resize(maps[0].shape[::-1], Image.Resampling.BILINEAR)
        painted, truth = (
            overlay(photo, each, count, ignore_index=self.ignore_index, colours=colours)
            for each in maps
        )
        return [("photograph", photo), ("prediction", painted), ("truth", truth)]

    def _write_images(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for kind, examples in (("best", self.best), ("worst", self.worst)):
            for i, example in enumerate(examples):
                pictures = [picture for _, picture in self._pictures(example)]
                sheet = contact_sheet([pictures], [_title(example)], height=pictures[0].height)
                name = f"{kind}-{i + 1}-{Path(example.name).stem}.jpg"
                _save(sheet, folder / name, quality=90)

    # The page

    def _write_page(self, path: Path, confusion: Image.Image) -> None:
        page.write_page(
            path,
            "Segmentation scores",
            [
                self._headline(),
                page.section("How this was measured", page.facts(self.protocol.items())),
                self._class_table(),
                *([self._legacy_section()] if self._legacy else []),
                page.section(
                    "Confusions",
                    page.paragraph(
                        "Where the pixels of each class went, in per cent of the class: a row for "
                        "each true class, a column for each predicted one. A perfect model has a "
                        "blue diagonal and nothing else."
                    ),
                    page.figure(page.picture(confusion, "matrix of confusions, in per cent")),
                ),
                self._gallery("Best images", self.best),
                self._gallery("Worst images", self.worst),
            ],
            self.protocol.get("data", ""),
        )

    def _headline(self) -> Html:
        notes = {
            "": ("mIoU", "mean over classes of intersection over union"),
            "things_": ("mIoU of things", "confusions among things only"),
            "stuff_": ("mIoU of stuff", "confusions among stuff only"),
        }
        entries = [
            (_percent(self.scores[f"{prefix}miou"]), *notes[prefix]) for _, prefix in self._groups()
        ]
        accuracy = (_percent(self.scores["accuracy"]), "accuracy", "share of labelled pixels")
        return page.cards([entries[0], accuracy, *entries[1:]])

    def _class_table(self) -> Html:
        columns = [
            Column("class"),
            Column("kind", note="thing: countable; stuff: not"),
            Column("clusters", note="numbers of the clusters that were matched to the class"),
            Column("pixels, %", "share", "share of all labelled pixels"),
            Column("IoU, %", "share", "intersection over union"),
            Column("accuracy, %", "share", "share of the class's pixels that are right"),
        ]
        colours = self._colours()
        rows: list[list[Cell]] = [
            [Html(page.swatch(colours[c]) + page.html(row[0])), *row[1:]]
            for c, row in enumerate(self._rows())
        ]
        totals: list[list[Cell]] = [
            [
                f"all {title}" if prefix else "all classes",
                *("", "", ""),
                float(self.scores[f"{prefix}miou"]),
                float(self.scores[f"{prefix}accuracy"]),
            ]
            for title, prefix in self._groups()
        ]
        if self.classes.things is None:  # an empty column tells nobody anything
            columns.pop(1)
            for row in (*rows, *totals):
                row.pop(1)
        explanation = page.details("What these numbers mean", *map(page.paragraph, _READING))
        return page.section("Classes", page.table(columns, rows, totals), explanation)

    def _legacy_section(self) -> Html:
        columns = [
            Column("legacy score"),
            Column("mIoU, %", "share"),
            Column("accuracy, %", "share"),
        ]
        rows: list[list[Cell]] = [
            [
                f"{name} (legacy)",
                float(self.scores[f"legacy_{name}_miou"]),
                float(self.scores[f"legacy_{name}_accuracy"]),
            ]
            for name in ("things", "stuff")
        ]
        warning = Html(f'<p class="warning">{page.html(_LEGACY)}</p>')
        return page.section("Legacy scores", warning, page.table(columns, rows))

    def _gallery(self, title: str, examples: Sequence[Example]) -> Html:
        figures = [
            page.figure(
                page.row(
                    [
                        page.picture(page.thumbnail(picture), f"{kind}, {example.name}", "jpeg")
                        for kind, picture in self._pictures(example)
                    ]
                ),
                _title(example),
            )
            for example in examples
        ]
        shown = {
            int(c)
            for e in examples
            for c in np.unique([*np.unique(e.truth), *np.unique(e.prediction)])
        }
        colours = zip(self._colours(), [*self.classes.names, "matched to no class"], strict=True)
        return page.section(
            title,
            page.paragraph(
                "By mIoU of the image under the matching above. Photograph, prediction, truth; "
                "void is left bare."
            ),
            Html(f'<div class="gallery">{page.join(figures)}</div>'),
            page.legend([entry for c, entry in enumerate(colours) if c in shown]),
        )


def read_matching(
    path: Path, num_clusters: int, class_names: Sequence[str] | None = None
) -> tuple[list[int], list[str], str]:
    """Read the matching of an earlier validation.

    Args:
        path: its ``scores.json``.
        num_clusters: clusters of the model that it will be used on.
        class_names: classes of the labels that it will be used on; None where there are no labels.

    Returns:
        Class of each cluster, -1 for none; the names of the classes; and what it was learned on, in
        words.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or of another model or data set.
    """
    kinds = "" if class_names is None else '"hungarian", "majority", or '
    expected = f"expected {kinds}the scores.json of an earlier `densesiam validate`"
    check_is_file(path, "matching", expected)
    try:
        content = json.loads(path.read_text())
        assignment, names = list(content["assignment"]), list(content["classes"])
        learned = f"{content['protocol']['matching']}, on {content['protocol']['data']}"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no matching: {expected}") from error
    if len(assignment) != num_clusters:
        raise ValueError(
            f"the matching in {path} is for {len(assignment)} clusters, the model has "
            f"{num_clusters}: learn it with the same model"
        )
    if class_names is not None and names != list(class_names):
        raise ValueError(
            f"the matching in {path} is for other classes ({', '.join(names)}) than the labels "
            f"have ({', '.join(class_names)})"
        )
    return assignment, names, learned


def _title(example: Example) -> str:
    return f"{example.name}: mIoU {100 * example.miou:.1f}, accuracy {100 * example.accuracy:.1f}"


def _percent(value: Tensor) -> str:
    return "n/a" if value.isnan() else f"{100 * float(value):.1f} %"


def _number(value: float) -> str:
    return "" if value != value else f"{value:.6f}"


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    with replacing(path) as partial:
        picture.save(partial, **options)
