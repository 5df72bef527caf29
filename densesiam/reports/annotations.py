"""Label maps in the forms that annotation tools and detectors read: COCO's JSON, labelme's."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from densesiam._writing import replacing
from densesiam.reports.naming import Categories
from densesiam.reports.polygons import regions
from densesiam.reports.record import Done

Form = Literal["coco", "coco-polygons", "labelme"]


def write_annotations(
    folder: Path, done: Sequence[Done], categories: Categories, forms: Sequence[Form]
) -> list[str]:
    """Write a prediction's label maps in other forms.

    - ``coco``: ``coco.json``, a mask for each category in each image as compressed run lengths;
    - ``coco-polygons``: ``coco-polygons.json``, the same as polygons, one for each region. They run
      along the pixels' edges, so that pycocotools reads back the very masks; a hole is reached by
      a way there and back.
    - ``labelme``: ``labelme/<image>.json``, which name the photographs by their relative paths.

    Args:
        folder: of the prediction, with its ``labels/``.
        done: its images.
        categories: of its label maps.
        forms: which to write.

    Returns:
        What was written, relative to the folder.

    Raises:
        OSError: a label map cannot be read, or a file cannot be written.
    """
    written = []
    for form in dict.fromkeys(forms):
        if form == "labelme":
            for each in done:
                path = folder / "labelme" / f"{each.name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_labelme(path, each, _labels(folder, each), categories)
            written.append("labelme/")
        else:
            _write_coco(folder, done, categories, form == "coco-polygons")
            written.append(f"{form}.json")
    return written


def _labels(folder: Path, each: Done) -> np.ndarray:
    with Image.open(folder / "labels" / f"{each.name}.png") as file:
        return np.asarray(file)


def _present(each: Done) -> Iterator[int]:
    return (k for k, pixels in enumerate(each.pixels) if pixels)


def _write_with(file: IO[str], content: Mapping[str, Any], name: str, items: Iterable[str]) -> None:
    """Write JSON with a list as its last entry, item by item, none of which is kept in memory."""
    file.write(json.dumps(content)[:-1] + f', "{name}": [')
    for i, item in enumerate(items):
        file.write(",\n" if i else "\n")
        file.write(item)
    file.write("\n]}")


def _write_coco(folder: Path, done: Sequence[Done], categories: Categories, polygons: bool) -> None:
    """Write one file for all images."""
    name = "coco-polygons.json" if polygons else "coco.json"
    head = {
        "info": {"description": "segmented by densesiam"},
        "categories": [
            {"id": k + 1, "name": each, "supercategory": "", "color": colour}
            for k, (each, colour) in enumerate(
                zip(categories.names, categories.colours.tolist(), strict=True)
            )
        ],
        "images": [
            {
                "id": i + 1,
                "file_name": each.path,
                "width": each.size[0],
                "height": each.size[1],
            }
            for i, each in enumerate(done)
        ],
    }
    with replacing(folder / name) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        number = 0
        for i, each in enumerate(done):
            labels = _labels(folder, each)
            for k in _present(each):
                file.write(",\n" if number else "\n")
                number += 1
                mask = labels == k
                annotation = {
                    "id": number,
                    "image_id": i + 1,
                    "category_id": k + 1,
                    "iscrowd": 0,
                    "area": each.pixels[k],
                    "bbox": _box(mask),
                }
                if polygons:
                    found = (json.dumps(r.joined().ravel().tolist()) for r in regions(mask))
                    _write_with(file, annotation, "segmentation", found)
                else:
                    file.write(json.dumps({**annotation, "segmentation": _run_lengths(mask)}))
        file.write("\n]}\n")


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco

    runs = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def _box(mask: np.ndarray) -> list[int]:
    """Left, top, width and height of what is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _write_labelme(path: Path, each: Done, labels: np.ndarray, categories: Categories) -> None:
    """Write the file of one image."""
    photo = os.path.relpath(os.path.abspath(each.path), os.path.abspath(path.parent))
    head: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "imagePath": photo,
        "imageData": None,
        "imageHeight": each.size[1],
        "imageWidth": each.size[0],
    }
    shapes = (
        {
            "label": categories.names[k],
            "points": region.joined().tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for k in _present(each)
        for region in regions(labels == k)
    )
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        _write_with(file, head, "shapes", map(json.dumps, shapes))
