"""Images with one class each, in a folder of its own for each class: ImageNet's layout."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from densesiam.data.draws import Draw, seeded_generator
from densesiam.data.evaluation import Evaluation
from densesiam.data.files import find_images, read_image
from densesiam.data.frame import to_normalised
from densesiam.data.supervised import SupervisedData


class ClassifiedImages(Dataset[dict[str, Tensor]]):
    """The images of a folder of classes: ``ROOT/CLASS/*.jpg``, class names in sorted order.

    An item is a dict of ``image`` (3, size, size) float32, ``label`` () int64, ``index`` () int64.
    To train on, an image is cut and resized at random and mirrored in one case of two; otherwise
    its shorter side is resized and its centre cut out. An item that `EvaluationSampler` repeats to
    fill up a process's share has label -1.

    Args:
        root: the folder.
        size: side of the images.
        resize: shorter side before the centre crop; None draws crops at random.
        seed: the experiment's seed.

    Attributes:
        classes: names of the classes.

    Raises:
        FileNotFoundError: there is no such folder, or a class without images.
    """

    def __init__(self, root: str | Path, size: int, resize: int | None, seed: int = 0) -> None:
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
        self._crop = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        self.seed = seed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, draw: Draw | int) -> dict[str, Tensor]:
        """One image and its class."""
        if isinstance(draw, int):
            draw = Draw(draw)
        path, label = self._samples[draw.index]
        photo = read_image(path)
        if self._whole is None:
            generator = seeded_generator(self.seed, draw.epoch, draw.repetition, draw.index)
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global state
                torch.manual_seed(generator.initial_seed())
                image = to_normalised(self._crop(photo))
        else:
            image = self._whole(photo)["image"]
            label = -1 if draw.repetition else label
        return {
            "image": image,
            "label": torch.tensor(label),
            "index": torch.tensor(draw.index),
        }


class ClassifiedData(SupervisedData):
    """Images of classes to train on and to score: ``train/CLASS/*.jpg``, ``val/CLASS/*.jpg``.

    Args:
        train: folder of the training images.
        val: folder of those to score.
        size: side of the images.
        resize: shorter side of the images to score, before the centre is cut out.
        batch_size: images in a training batch, on each process.
        val_batch_size: images in a validation batch, on each process.
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        seed: all draws and orders follow from it.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        size: int = 224,
        resize: int = 256,
        batch_size: int = 256,
        val_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, seed)
        self.train = train
        self.val = val
        self.size = size
        self.resize = resize

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes.

        Raises:
            ValueError: no folder was given, or two with different classes.
        """
        sets = [s for s in (self.train and self.training_set(), self.validation_set()) if s]
        if not sets:
            raise ValueError("no images: give data.train and data.val, folders of classes")
        if sets[0].classes != sets[-1].classes:
            differing = sorted(set(sets[0].classes) ^ set(sets[-1].classes))
            raise ValueError(
                f"{self.train} and {self.val} differ in their classes: only one has "
                f"{', '.join(differing[:5])}"
            )
        return sets[0].classes

    def training_set(self) -> ClassifiedImages:
        """Random crops."""
        if self.train is None:
            raise ValueError("no images to train on: give data.train, a folder of classes")
        return ClassifiedImages(self.train, self.size, None, self.seed)

    def validation_set(self) -> ClassifiedImages | None:
        """Centre crops."""
        return None if self.val is None else ClassifiedImages(self.val, self.size, self.resize)
