"""Images with boxes and masks around their objects: COCO's and Pascal VOC's files."""

import contextlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

from densesiam._reading import check_is_file
from densesiam.data.image.files import find_images, read_image
from densesiam.data.image.frame import to_normalised
from densesiam.data.order.draws import Draw, chance, seeded_generator
from densesiam.data.sets.classes import known_table
from densesiam.data.sets.layout import listing, misplaced, read_names
from densesiam.data.sets.substitutes import Errors, Substitutes


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: (n, 4) float64, left, top, right, bottom in the image's pixels, continuous.
        labels: (n,) int64, numbers of the classes from 1; 0 is the detectors' background.
        ignored: (n,) bool, what scores pass over: COCO's crowds, VOC's difficult objects.
        area: (n,) float64, of the object in pixels; COCO sorts small from large by it.
        masks: (n, H, W) uint8, where masks were asked for.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    area: Tensor
    masks: Tensor | None = None

    def select(self, chosen: Tensor) -> "Objects":
        """Those objects for which a mask (n,) is true."""
        masks = None if self.masks is None else self.masks[chosen]
        return Objects(
            self.boxes[chosen], self.labels[chosen], self.ignored[chosen], self.area[chosen], masks
        )

    def flip(self, width: int) -> "Objects":
        """The objects of the mirrored image."""
        left, top, right, bottom = self.boxes.unbind(1)
        boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
        masks = None if self.masks is None else self.masks.flip(2)
        return Objects(boxes, self.labels, self.ignored, self.area, masks)

    def as_dict(self) -> dict[str, Tensor]:
        """The fields by name, as a batch carries them; ``masks`` only where there are any."""
        return {name: value for name, value in vars(self).items() if value is not None}


class ObjectImages(ABC):
    """Images with annotated objects.

    Attributes:
        paths: the image files.
        classes: names of the classes; class k has label k + 1.
        learns_ignored: whether to train on objects that scores pass over.
    """

    paths: Sequence[Path]
    classes: Sequence[str]
    learns_ignored: bool

    @abstractmethod
    def objects(self, index: int) -> Objects:
        """The objects of one image."""


class CocoObjects(ObjectImages):
    """Objects in COCO's json layout, with the masks of instances.

    Usually ``coco/train2017/*.jpg`` with ``coco/annotations/instances_train2017.json``; any data
    set in that layout will do. Training passes over crowds.

    Args:
        images: folder that the file names in the annotations are relative to.
        annotations: the json file.
        masks: whether to read masks too.

    Raises:
        FileNotFoundError: the folder, the file or some of the images are missing.
        ValueError: the file is not in COCO's layout.
    """

    learns_ignored = False

    def __init__(self, images: str | Path, annotations: str | Path, masks: bool = True) -> None:
        images, annotations = Path(images), Path(annotations)
        check_is_file(
            annotations,
            "file of annotations",
            "expected COCO's layout, such as\n"
            "coco/train2017/000000000009.jpg\ncoco/annotations/instances_train2017.json",
        )
        self._coco = _read_coco(annotations)
        self._ids = sorted(self._coco.imgs)
        self._masks = masks
        categories = sorted(self._coco.cats)
        self.classes = [self._coco.cats[category]["name"] for category in categories]
        self._label = {category: k + 1 for k, category in enumerate(categories)}
        there = {path.relative_to(images).as_posix() for path in find_images(images)}
        names = [self._coco.imgs[i]["file_name"] for i in self._ids]
        if absent := [name for name in names if name not in there]:
            raise FileNotFoundError(
                f"{len(absent)} of the {len(names)} images in {annotations} are not in {images}: "
                f"{listing(absent, 3)}"
            )
        self.paths = [images / name for name in names]

    def objects(self, index: int) -> Objects:
        """The objects of one image."""
        entries = self._coco.imgToAnns.get(self._ids[index], [])
        corners = torch.tensor([e["bbox"] for e in entries], dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]  # from left, top, width, height
        masks = None
        if self._masks:
            info = self._coco.imgs[self._ids[index]]
            masks = torch.zeros(len(entries), info["height"], info["width"], dtype=torch.uint8)
            for mask, entry in zip(masks, entries, strict=True):
                mask.copy_(torch.from_numpy(self._coco.annToMask(entry)))
        return Objects(
            corners,
            torch.tensor([self._label[e["category_id"]] for e in entries], dtype=torch.int64),
            torch.tensor([bool(e.get("iscrowd", 0)) for e in entries], dtype=torch.bool),
            torch.tensor([e["area"] for e in entries], dtype=torch.float64),
            masks,
        )


class VocObjects(ObjectImages):
    """Objects in Pascal VOC's xml layout: boxes of 20 classes.

    Under the root lie the years as the downloads unpack them::

        VOCdevkit/VOC2007/JPEGImages/000005.jpg
        VOCdevkit/VOC2007/Annotations/000005.xml
        VOCdevkit/VOC2007/ImageSets/Main/trainval.txt

    Difficult objects are trained on, as is usual, but scores pass over them.

    Args:
        root: the folder of the years.
        splits: year and list, such as ``["VOC2007/trainval", "VOC2012/trainval"]``.

    Raises:
        FileNotFoundError: a list, an image or an annotation is missing; the message draws the
            layout.
        ValueError: (when asked for objects) an annotation that is not in VOC's layout.
    """

    classes = known_table("voc").names[1:]  # all but background, which is no object
    learns_ignored = True

    def __init__(self, root: str | Path, splits: Sequence[str]) -> None:
        root = Path(root)
        self.paths = []
        self._annotations: list[Path] = []
        for split in splits:
            year, _, name = split.partition("/")
            lists = f"{year}/ImageSets/Main/{name}.txt"
            tree = (f"{year}/JPEGImages/*.jpg", f"{year}/Annotations/*.xml", lists)
            if not (root / lists).is_file():
                raise FileNotFoundError(
                    misplaced(root, f"no list {lists}", [lists], "Pascal VOC", tree)
                )
            # The lists of one class have a second column.
            names = [line.split()[0] for line in read_names(root / lists)]
            for kind, extension, files in (
                ("JPEGImages", ".jpg", self.paths),
                ("Annotations", ".xml", self._annotations),
            ):
                folder = root / year / kind
                there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
                if absent := [n + extension for n in names if n + extension not in there]:
                    problem = f"{len(absent)} of {len(names)} listed images have no file in {kind}"
                    raise FileNotFoundError(
                        misplaced(
                            root,
                            f"{problem}: {listing(absent, 3)} not",
                            [f"{year}/{kind}/*{extension}"],
                            "Pascal VOC",
                            tree,
                        )
                    )
                files += [folder / (n + extension) for n in names]

    def objects(self, index: int) -> Objects:
        """The objects of one image."""
        path = self._annotations[index]
        boxes, labels, ignored = [], [], []
        try:
            for entry in ElementTree.parse(path).iter("object"):
                edges = [float(entry.findtext(f"bndbox/{e}", "")) for e in _VOC_EDGES]
                # The first pixel is number 1, and the box includes the last one.
                boxes.append([edges[0] - 1, edges[1] - 1, edges[2], edges[3]])
                labels.append(self.classes.index(entry.findtext("name", "")) + 1)
                ignored.append(entry.findtext("difficult", "0") == "1")
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"{path} is no annotation in Pascal VOC's layout: {error}") from error
        edges_of_all = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        width, height = (edges_of_all[:, 2:] - edges_of_all[:, :2]).unbind(1)
        return Objects(
            edges_of_all,
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(ignored, dtype=torch.bool),
            width * height,
        )


_VOC_EDGES = ("xmin", "ymin", "xmax", "ymax")


class DetectionSamples(Dataset[dict[str, Any]]):
    """Images with their objects, to train on or to score.

    An item is a dict of ``image`` (3, H, W) float32, normalised with ImageNet's mean and standard
    deviation; ``target``, the fields of `Objects`; ``counts`` () bool, false for an item that
    `EvaluationSampler` repeats to fill up a process's share; ``index`` and ``skipped`` () int64, as
    of `ImageFiles`.

    To train on, images without an object to learn are left out, and an image is mirrored in one
    case of two.

    Args:
        source: the annotated images.
        training: whether they are to train on.
        seed: the experiment's seed.
        errors: what to do about a file that cannot be read, see `ImageFiles`.

    Raises:
        ValueError: there is nothing to learn in any image.
    """

    def __init__(
        self, source: ObjectImages, training: bool, seed: int = 0, errors: Errors = "raise"
    ) -> None:
        self.source = source
        self.training = training
        self.seed = seed
        self.indices = list(range(len(source.paths)))
        if training:
            self.indices = [i for i in self.indices if len(self._learned(source.objects(i)).labels)]
            if not self.indices:
                raise ValueError("none of the training images has an object to learn")
        self._files = Substitutes(len(self.indices), self._read, errors)

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [self.source.paths[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """One image."""
        draw = Draw.of(draw)
        image, position, skipped = self._files.find(draw, to_normalised)
        objects = self.source.objects(self.indices[position])
        if self.training:
            objects = self._learned(objects)
            asked_for = self.indices[draw.index]
            generator = seeded_generator(self.seed, draw.epoch, draw.repetition, asked_for)
            if chance(generator, 0.5):
                image, objects = image.flip(2), objects.flip(image.shape[2])
        return {
            "image": image,
            "target": objects.as_dict(),
            "counts": torch.tensor(draw.repetition == 0 or self.training),
            "index": torch.tensor(position),
            "skipped": torch.tensor(skipped),
        }

    def _read(self, index: int) -> Image.Image:
        return read_image(self.source.paths[self.indices[index]])

    def _learned(self, objects: Objects) -> Objects:
        """The objects to train on: with an area, and no crowds."""
        chosen = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(dim=1)
        if not self.source.learns_ignored:
            chosen &= ~objects.ignored
        return objects.select(chosen)


def _read_coco(path: Path) -> COCO:
    """Read annotations, without what the library prints about it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
        if not coco.imgs or not coco.cats or not coco.anns:
            raise KeyError("images, categories or annotations")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(
            f"{path} is not in COCO's layout: expected a json object with the lists images, "
            f"annotations and categories, none of them empty ({error})"
        ) from error
    return coco
