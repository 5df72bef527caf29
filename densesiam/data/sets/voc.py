"""Pascal VOC, 2007 or 2012: 20 classes of objects and background."""

from pathlib import Path

from densesiam.data.image.files import find_images
from densesiam.data.image.transform import NATIVE, Evaluation
from densesiam.data.sets.classes import known_table
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.layout import find_folder, listing, misplaced, read_names
from densesiam.data.sets.unlabelled import ImageList

_LISTS = "ImageSets/Segmentation"
_TREE = (
    "JPEGImages/2007_000032.jpg ...",
    "SegmentationClass/2007_000032.png ...",
    f"{_LISTS}/train.txt",
    f"{_LISTS}/val.txt",
    f"{_LISTS}/trainval.txt",
)


class VocImages(ImageList):
    """Images of Pascal VOC: all of ``ROOT/JPEGImages``, or those of one of its lists.

    Args:
        root: folder of one year, such as ``VOCdevkit/VOC2012``.
        image_set: a list in ``ROOT/ImageSets``, such as ``Segmentation/train`` or
            ``Main/trainval``; None takes every image.

    Raises:
        FileNotFoundError: a folder, the list or an image in it is missing; the message draws the
            layout.
    """

    def __init__(self, root: str | Path, image_set: str | None = None) -> None:
        root = Path(root)
        if image_set is None:
            super().__init__(find_images(_folder(root, "JPEGImages")))
        else:
            names = _names(root, f"ImageSets/{image_set}.txt")
            super().__init__(_files(root, "JPEGImages", names, ".jpg"))


class VocSegmentation(LabelledFiles):
    """Pascal VOC's segmentation by class: background and 20 kinds of objects, all of these things.

    Under the root lie the folders of one year as the download unpacks them::

        ROOT/JPEGImages/*.jpg
        ROOT/SegmentationClass/*.png          palette images; 255, the border of objects, is void
        ROOT/ImageSets/Segmentation/*.txt     the splits

    Args:
        root: folder of one year, such as ``VOCdevkit/VOC2012``.
        split: a list in ``ROOT/ImageSets/Segmentation``: train, val or trainval.
        ignore_index: the class number of void.
        transform: applied to image and label.

    Raises:
        FileNotFoundError: a folder, the list or a file in it is missing; the message draws the
            layout.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        ignore_index: int = 255,
        transform: Evaluation = NATIVE,
    ) -> None:
        root = Path(root)
        names = _names(root, f"{_LISTS}/{split}.txt")
        images = _files(root, "JPEGImages", names, ".jpg")
        labels = _files(root, "SegmentationClass", names, ".png")
        super().__init__(
            list(zip(images, labels, strict=True)),
            known_table("voc"),
            ignore_index,
            transform=transform,
            description=f"Pascal VOC ({root.name}), {split}: {len(names):,} images",
        )


def _names(root: Path, path: str) -> list[str]:
    if not (root / path).is_file():
        raise FileNotFoundError(
            misplaced(root, f"no list {path}", [path], "Pascal VOC", (*_TREE, path))
        )
    return read_names(root / path)


def _files(root: Path, kind: str, names: list[str], extension: str) -> list[Path]:
    folder = _folder(root, kind)
    there = {path.name for path in find_images(folder)}
    if absent := [name for name in names if name + extension not in there]:
        problem = f"{len(absent)} of {len(names)} listed images have no {kind} file: "
        raise FileNotFoundError(
            misplaced(root, problem + listing(absent, 3) + " not", [], "Pascal VOC", _TREE)
        )
    return [folder / (name + extension) for name in names]


def _folder(root: Path, kind: str) -> Path:
    return find_folder(root, [kind], "Pascal VOC", _TREE)
