"""Images with one class each, in a folder of its own for each class: ImageNet's layout."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from densesiam.data.image.files import find_images
from densesiam.data.image.frame import Frame, to_normalised
from densesiam.data.image.lazy import LazyImage, Part
from densesiam.data.image.transform import Evaluation
from densesiam.data.order.draws import Draw, chance, seeded_generator
from densesiam.data.sets.substitutes import Errors, Substitutes
from densesiam.data.views.paired import resized_crop

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Shares of the area and aspect ratios of the crops to train on: ImageNet's usual ones."""


class ClassifiedImages(Dataset[dict[str, Tensor]]):
    """The images of a folder of classes: ``ROOT/CLASS/*.jpg``, class names in sorted order.

    An item is a dict of ``image`` (3, size, size) float32, ``label``, ``index`` and ``skipped``
    () int64, as of `ImageFiles`. To train on, an image is cut and resized at random and mirrored in
    one case of two; otherwise its shorter side is resized and its centre cut out. An item that
    `EvaluationSampler` repeats to fill up a process's share has label -1.

    Args:
        root: the folder.
        size: side of the images.
        resize: shorter side before the centre crop; None draws crops at random.
        seed: the experiment's seed.
        errors: what to do about a file that cannot be read, see `ImageFiles`.

    Attributes:
        classes: names of the classes.

    Raises:
        FileNotFoundError: there is no such folder, or a class without images.
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        resize: int | None,
        seed: int = 0,
        errors: Errors = "raise",
    ) -> None:
        root = Path(root)
        folders = (
            sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
            if root.is_dir()
            else []
        )
        if not folders:
            problem = "holds no folders" if root.is_dir() else "is no folder"
            raise FileNotFoundError(
                f"{root} {problem}; expected one folder of images for each class:\n"
                f"{root}/cat/1.jpg\n{root}/cat/2.jpg\n{root}/dog/1.jpg"
            )
        self.classes = [folder.name for folder in folders]
        self._samples = [
            (path, label) for label, folder in enumerate(folders) for path in find_images(folder)
        ]
        self._whole = None if resize is None else Evaluation(resize, size)
        self._size = size
        self.seed = seed
        self._files = Substitutes(len(self._samples), self._read, errors)

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [path for path, _ in self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, draw: Draw | int) -> dict[str, Tensor]:
        """One image and its class."""
        draw = Draw.of(draw)
        image, index, skipped = self._files.find(draw, lambda photo: self._shown(photo, draw))
        label = self._samples[index][1]
        if self._whole is not None and draw.repetition:
            label = -1
        return {
            "image": image,
            "label": torch.tensor(label),
            "index": torch.tensor(index),
            "skipped": torch.tensor(skipped),
        }

    def _read(self, index: int) -> LazyImage:
        return LazyImage(self._samples[index][0])

    def _shown(self, photo: LazyImage, draw: Draw) -> Tensor:
        if self._whole is not None:
            return self._whole(photo)["image"]
        generator = seeded_generator(self.seed, draw.epoch, draw.repetition, draw.index)
        frame = Frame.of(photo.size, None, None)
        crop = resized_crop(frame, SCALE, RATIO, generator)
        part = Part(crop, (self._size, self._size), chance(generator, 0.5))
        return to_normalised(photo.read([part])[0])
