"""COCO-Stuff with 27 classes: the data set of the paper's main table."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from densesiam.data.image.files import find_images
from densesiam.data.image.transform import NATIVE, Evaluation
from densesiam.data.sets.classes import known_table
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.layout import find_folder, listing, misplaced, read_names
from densesiam.data.sets.unlabelled import ImageList, named

CURATED = {"train": 49_629, "val": 2_175}
"""Images in the lists of the usual protocol."""

_TREE = (
    "images/train2017/000000000009.jpg ...",
    "images/val2017/000000000139.jpg ...",
    "annotations/train2017/000000000009.png ...",
    "annotations/val2017/000000000139.png ...",
)
# As the downloads unpack them, when each goes where its maker's page says, or all into one folder.
_IMAGES = ("images/{}", "{}")
_LABELS = ("annotations/{}", "stuffthingmaps/{}", "annotations/stuffthingmaps/{}")

Split = Literal["train", "val"]


class CocoImages(ImageList):
    """The images of a split of COCO 2017: ``ROOT/images/train2017`` or ``ROOT/train2017``.

    Args:
        root: folder of the data set.
        split: train2017 or val2017.
        names: text file with one image a line, such as the protocol's list of 49,629; folder and
            extension of its entries do not count. None takes the whole split.

    Raises:
        FileNotFoundError: a folder or the list is missing; the message draws the layout.
        ValueError: the list names images that the split does not have.
    """

    def __init__(
        self, root: str | Path, split: Split = "train", names: str | Path | None = None
    ) -> None:
        super().__init__(_images(Path(root), split, names))


class CocoStuff27(LabelledFiles):
    """COCO-Stuff's pixel maps as 27 classes, 12 things and 15 stuff, after PiCIE's protocol.

    Under the root lie the downloads of COCO 2017's images and of
    ``stuffthingmaps_trainval2017.zip``::

        ROOT/images/{train2017,val2017}/*.jpg         (or ROOT/{train2017,val2017})
        ROOT/annotations/{train2017,val2017}/*.png    (or ROOT/stuffthingmaps/...)

    The protocol evaluates on 2,175 of the 5,000 images of val2017, by a list that comes with it.
    Without the list all 5,000 count, and results do not compare with published ones.

    Args:
        root: folder of the data set.
        split: train2017 or val2017.
        names: text file with one image a line, as for `CocoImages`.
        ignore_index: the class number of void.
        transform: applied to image and label.

    Raises:
        FileNotFoundError: a folder or the list is missing; the message draws the layout.
        ValueError: the list names images that the split does not have, or a label is missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "val",
        names: str | Path | None = None,
        ignore_index: int = 255,
        transform: Evaluation = NATIVE,
    ) -> None:
        root = Path(root)
        images = _images(root, split, names)
        folder = _folder(root, _LABELS, split)
        there = {path.stem for path in find_images(folder)}
        if absent := [path.name for path in images if path.stem not in there]:
            raise FileNotFoundError(
                misplaced(
                    root,
                    f"{len(absent)} images of {split}2017 have no label: {listing(absent)}",
                    (),
                    "COCO-Stuff",
                    _TREE,
                )
            )
        of = f"{names}, {len(images):,} images" if names else f"all {len(images):,} images"
        usual = "" if len(images) == CURATED[split] else f" (the usual list has {CURATED[split]:,})"
        super().__init__(
            [(path, folder / f"{path.stem}.png") for path in images],
            known_table("coco_stuff27"),
            ignore_index,
            transform=transform,
            description=f"COCO-Stuff-27, {split}2017: {of}{usual}",
        )


def _images(root: Path, split: Split, names: str | Path | None) -> list[Path]:
    folder = _folder(root, _IMAGES, split)
    paths = find_images(folder)
    if names is None:
        return paths
    wanted = [PurePosixPath(name).stem for name in read_names(names)]
    return named({path.stem: path for path in paths}, wanted, names, folder)


def _folder(root: Path, places: Sequence[str], split: Split) -> Path:
    if split not in CURATED:
        raise ValueError(f'COCO-Stuff: split must be "train" or "val", got {split!r}')
    return find_folder(
        root, [place.format(f"{split}2017") for place in places], "COCO-Stuff", _TREE
    )
