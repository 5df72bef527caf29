"""Cityscapes with 27 classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from densesiam.data.image.files import find_images
from densesiam.data.image.transform import NATIVE, Evaluation
from densesiam.data.sets.classes import known_table
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.layout import find_folder, listing, misplaced
from densesiam.data.sets.unlabelled import ImageList

_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"
_IMAGE_SPLITS = ("train", "val", "test", "train_extra")
_LABEL_SPLITS = ("train", "val")
_TREE = (
    *(f"leftImg8bit/{split}/CITY/*{_IMAGE}" for split in _IMAGE_SPLITS),
    *(f"gtFine/{split}/CITY/*{_LABEL}" for split in _LABEL_SPLITS),
)
_PROTOCOL = {
    "val": "the ordinary validation split; PiCIE's protocol evaluates on train and val together",
    "train": "the ordinary training split",
    "train+val": "PiCIE's protocol, whose models train on the images of test and train_extra",
}


class CityscapesImages(ImageList):
    """Street scenes of some splits of Cityscapes, ``ROOT/leftImg8bit/SPLIT/CITY/*.png``.

    Args:
        root: folder of the data set.
        splits: any of train, val, test and train_extra. PiCIE's protocol trains on test and
            train_extra, and evaluates on train and val.

    Raises:
        FileNotFoundError: a folder is missing; the message draws the layout.
        ValueError: an unknown split, or none.
    """

    def __init__(
        self,
        root: str | Path,
        splits: Sequence[Literal["train", "val", "test", "train_extra"]] = ("test", "train_extra"),
    ) -> None:
        if not splits or not set(splits) <= set(_IMAGE_SPLITS):
            raise ValueError(
                f"Cityscapes: splits must be some of {', '.join(_IMAGE_SPLITS)}, got {splits!r}"
            )
        super().__init__([path for split in splits for path in _images(Path(root), split)])


class Cityscapes27(LabelledFiles):
    """Cityscapes' fine labels as 27 classes: label ids 7 to 33, everything else void.

    Under the root lie the downloads ``leftImg8bit_trainvaltest.zip`` and
    ``gtFine_trainvaltest.zip`` as they unpack::

        ROOT/leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
        ROOT/gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png

    Two ways to evaluate are in use, and their results do not compare: on ``val`` (500 images), and
    on ``train+val`` (3,475 images) after training on test and train_extra, as PiCIE does.

    Args:
        root: folder of the data set.
        split: val, train or train+val.
        ignore_index: the class number of void.
        transform: applied to image and label.

    Raises:
        FileNotFoundError: a folder or a label is missing; the message draws the layout.
        ValueError: an unknown split.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["val", "train", "train+val"] = "val",
        ignore_index: int = 255,
        transform: Evaluation = NATIVE,
    ) -> None:
        if split not in _PROTOCOL:
            raise ValueError(
                f"Cityscapes: split must be one of {', '.join(_PROTOCOL)}, got {split!r}"
            )
        pairs = [pair for part in split.split("+") for pair in _pairs(Path(root), part)]
        super().__init__(
            pairs,
            known_table("cityscapes27"),
            ignore_index,
            transform=transform,
            description=f"Cityscapes-27, {split}: {len(pairs):,} images ({_PROTOCOL[split]})",
        )


def _images(root: Path, split: str) -> list[Path]:
    return [path for path in find_images(_folder(root, "leftImg8bit", split)) if _is_image(path)]


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    labels = _folder(root, "gtFine", split)
    there = {path for path in find_images(labels) if path.name.endswith(_LABEL)}
    pairs = [
        (path, labels / path.parent.name / (path.name.removesuffix(_IMAGE) + _LABEL))
        for path in _images(root, split)
    ]
    if absent := [str(label.relative_to(root)) for _, label in pairs if label not in there]:
        problem = f"{len(absent)} images have no label: {listing(absent, 3)} not"
        raise FileNotFoundError(
            misplaced(root, problem, [f"gtFine/{split}/CITY/*{_LABEL}"], "Cityscapes", _TREE)
        )
    return pairs


def _folder(root: Path, kind: str, split: str) -> Path:
    return find_folder(root, [f"{kind}/{split}"], "Cityscapes", _TREE)


def _is_image(path: Path) -> bool:
    return path.name.endswith(_IMAGE)
