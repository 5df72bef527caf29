"""Images with a label for every pixel, for evaluation."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from densesiam.data.image.files import find_images, read_header, read_label
from densesiam.data.image.lazy import LazyImage
from densesiam.data.image.transform import NATIVE, Evaluation
from densesiam.data.order.draws import Draw
from densesiam.data.sets.classes import ClassTable, LabelDecoder
from densesiam.data.sets.layout import listing

_DRAWN_ON_STORED = (
    "if labels were drawn on the pixels as they are stored, set `exif: stored` for these images"
)


class LabelledFiles(Dataset[dict[str, Tensor]]):
    """Pairs of an image file and its label file.

    Label images have one channel, grey values or palette indices, or are RGB pictures; the class
    table gives their meaning.

    An item is what `Evaluation` returns for image and label, and ``index``, () int64. An item that
    `EvaluationSampler` repeats to fill up a process's share is void all over.

    Args:
        paths: of each image and its label.
        classes: what the label values mean.
        ignore_index: the class number of void, and a label value that always means void.
        groups: names of the classes that make each group, by the group's name; the groups then are
            the classes, and a class in no group is void. See `ClassTable.grouped`.
        transform: applied to image and label.
        description: data set and split in words, for reports of results.
        exif: "upright": photographs are turned as their EXIF orientation says, and labels as
            theirs does, if they have one; "stored": neither is turned, for labels that were drawn
            on the pixels as they are stored.

    Attributes:
        classes: the table of the classes in the items: the groups, where there are any.

    Raises:
        ValueError: a class table that does not fit together; when asked for an item, a label of
            another size than its image's, or with values outside the class table.
        ImageReadError: (when asked for an item) an unreadable file.
    """

    def __init__(
        self,
        paths: Sequence[tuple[Path, Path]],
        classes: ClassTable,
        ignore_index: int = 255,
        groups: Mapping[str, Sequence[str]] | None = None,
        transform: Evaluation = NATIVE,
        description: str = "",
        exif: Literal["upright", "stored"] = "upright",
    ) -> None:
        if exif not in ("upright", "stored"):
            raise ValueError(f'exif must be "upright" or "stored", got {exif!r}')
        self.paths = list(paths)
        self.classes = classes if groups is None else classes.grouped(groups)
        self.ignore_index = ignore_index
        self.transform = transform
        self.description = description or f"{len(self.paths):,} images"
        self.exif = exif
        self._decode = LabelDecoder(self.classes, ignore_index)
        self._doubted = False

    def __len__(self) -> int:
        return len(self.paths)

    def shape(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of an item's image and of its label.

        They are read from the head of the image's file, where they are not the same for all.

        Raises:
            ImageReadError: the file cannot be read.
            ValueError: the image is smaller than the transform's crop.
        """
        transform = self.transform
        if transform.crop is not None and not transform.full_size_labels:
            return (transform.crop, transform.crop), (transform.crop, transform.crop)
        image_path, label_path = self.paths[index]
        header = read_header(image_path)
        try:
            return transform.sizes(header.size if self.exif == "upright" else header.stored)
        except ValueError as error:
            raise ValueError(f"{label_path}: {error}") from error

    def check_sizes(self) -> None:
        """Compare all labels' sizes with their images', as the heads of the files have them.

        Raises:
            ImageReadError: a file cannot be read.
            ValueError: a label is of another size.
        """
        upright = self.exif == "upright"
        for i, (image_path, label_path) in enumerate(self.paths):
            image, label = read_header(image_path), read_header(label_path)
            shown, drawn = (head.size if upright else head.stored for head in (image, label))
            self._check_size(i, shown, drawn, upright and image.turned and not label.turned)

    def _check_size(
        self, index: int, image: tuple[int, int], label: tuple[int, int], one_sided: bool
    ) -> None:
        """Compare widths and heights; `one_sided` where the image alone was turned."""
        if image != label:
            image_path, label_path = self.paths[index]
            raise ValueError(
                f"label {label_path} is {label[0]} x {label[1]} pixels, but its image "
                f"{image_path} is {image[0]} x {image[1]}"
                + (f" after its EXIF rotation; {_DRAWN_ON_STORED}" if one_sided else "")
            )

    def __getitem__(self, draw: Draw | int) -> dict[str, Tensor]:
        """One image and its label."""
        if isinstance(draw, int):
            draw = Draw(draw)
        image_path, label_path = self.paths[draw.index]
        upright = self.exif == "upright"
        image = LazyImage(image_path, upright)
        values = read_label(label_path, self.classes.label_colours, upright)
        turned = upright and not self._doubted and read_header(image_path).turned
        one_sided = turned and not read_header(label_path).turned
        height, width = values.shape
        self._check_size(draw.index, (image.width, image.height), (width, height), one_sided)
        if one_sided:
            self._doubted = True
            warnings.warn(
                f"{image_path} has an EXIF rotation and its label has none: the label is taken to "
                f"show the rotated photograph; {_DRAWN_ON_STORED}",
                stacklevel=2,
            )
        try:
            sample = self.transform(image, self._decode(values))
        except ValueError as error:
            raise ValueError(f"{label_path}: {error}") from error
        if draw.repetition > 0:
            sample["label"].fill_(self.ignore_index)
        return {**sample, "index": torch.tensor(draw.index)}


class LabelledImages(LabelledFiles):
    """A folder of images and a folder of label images, matched by their path within it.

    ``a/b.jpg`` and ``a/b.png`` match; see the suffixes for names that differ in their ends. For the
    rest, see `LabelledFiles`.

    Args:
        images: folder of images.
        labels: folder of label images.
        classes: what the label values mean.
        ignore_index: the class number of void, and a label value that always means void.
        groups: names of the classes that make each group, by the group's name; the groups then are
            the classes, and a class in no group is void. See `ClassTable.grouped`.
        transform: applied to image and label.
        image_suffix: what to strip from the end of image names (before the extension) to match.
        label_suffix: the same for labels; label files without it are passed over.
        exif: "upright" or "stored", see `LabelledFiles`.

    Raises:
        FileNotFoundError: a folder is missing or holds no image.
        NotADirectoryError: a file was given for a folder.
        ValueError: files that do not match, or a class table that does not fit together.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        classes: ClassTable,
        ignore_index: int = 255,
        groups: Mapping[str, Sequence[str]] | None = None,
        transform: Evaluation = NATIVE,
        image_suffix: str = "",
        label_suffix: str = "",
        exif: Literal["upright", "stored"] = "upright",
    ) -> None:
        pairs = _match(_by_name(images, image_suffix), _by_name(labels, label_suffix))
        description = f"{len(pairs):,} images of {images}, labels of {labels}"
        super().__init__(pairs, classes, ignore_index, groups, transform, description, exif)


def _by_name(root: str | Path, suffix: str) -> dict[str, Path]:
    """The image files under a folder, by their path in it less suffix and extension."""
    found: dict[str, Path] = {}
    for path in find_images(root, links="each"):  # images may share a label
        name = path.relative_to(root).with_suffix("").as_posix()
        if not name.endswith(suffix):
            continue
        name = name.removesuffix(suffix)
        if name in found:
            raise ValueError(f"two files of one name: {found[name]} and {path}")
        found[name] = path
    if not found:
        raise ValueError(f"no image in {root} has a name that ends in {suffix!r}")
    return found


def _match(images: dict[str, Path], labels: dict[str, Path]) -> list[tuple[Path, Path]]:
    """Pairs of image and label; an image without a label is an error, the reverse a warning."""
    if unlabelled := [path for name, path in images.items() if name not in labels]:
        raise ValueError(f"images without a label: {listing(unlabelled)}")
    if unused := [path for name, path in labels.items() if name not in images]:
        warnings.warn(f"labels without an image, not used: {listing(unused)}", stacklevel=3)
    return [(path, labels[name]) for name, path in images.items()]
