"""Data sets of images without labels."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from densesiam.data.image.lazy import LazyImage
from densesiam.data.image.transform import NATIVE, Evaluation
from densesiam.data.order.draws import Draw, seeded_generator
from densesiam.data.sets.substitutes import Errors, Substitutes
from densesiam.data.sets.unlabelled import FolderImages
from densesiam.data.views.paired import Views


class ImageFiles(Dataset[dict[str, Tensor]]):
    """Two random views of each of a list of image files.

    An item is what the transform returns; ``index``, () int64: which file was read; and
    ``skipped``, () int64: how many before it could not be, normally 0. Asked for by `Draw`, as
    `TrainingSampler` does, an item follows from seed, epoch, repetition and index alone. A plain
    number, as torch's own samplers give, draws afresh each time: see `Draw.of`.

    Decoding is the only sure test of a file, and far too slow to do to a large set up front. Bad
    files are therefore met when their turn comes. With ``errors="skip"`` a warning names each of
    them (once in each worker process) and the next readable file takes its place, the same in
    every run; in the next epoch it is tried again. With ``errors="raise"`` the run stops there.

    Args:
        paths: the files.
        transform: makes the views.
        seed: the experiment's seed.
        errors: what to do about a file that cannot be read.
        keep: bytes of decoded images to keep in memory, so that a set which takes no more is
            decoded once in each process. Of one that takes more, none are kept.

    Raises:
        ImageReadError: (when asked for an item) an unreadable file, or no readable file at all.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        transform: Views,
        seed: int = 0,
        errors: Errors = "skip",
        keep: int = 0,
    ) -> None:
        self.paths = list(paths)
        self.transform = transform
        self.seed = seed
        self.errors = errors
        self._room = keep
        # Views that want images may paint on what they are given.
        self._kept: dict[int, LazyImage] | None = {} if keep and transform.lazy else None
        self._files = Substitutes(len(self.paths), self._read, errors)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw | int) -> dict[str, Tensor]:
        """The views of one image, as drawn for one epoch and repetition, or afresh."""
        draw = Draw.of(draw)
        if not 0 <= draw.index < len(self):
            raise IndexError(f"no image {draw.index} among {len(self)}")
        drawn = draw if self.transform.redrawn else Draw(draw.index)

        def views(photo: LazyImage) -> tuple[dict[str, Tensor], LazyImage]:
            generator = seeded_generator(self.seed, drawn.epoch, drawn.repetition, drawn.index)
            image: Any = photo if self.transform.lazy else photo.decode()
            try:
                return self.transform(image, generator), photo
            except ValueError as error:
                raise ValueError(f"{photo.path}: {error}") from error

        (sample, photo), index, skipped = self._files.find(draw, views)
        self._keep(index, photo)
        return {**sample, "index": torch.tensor(index), "skipped": torch.tensor(skipped)}

    def _read(self, index: int) -> LazyImage:
        kept = None if self._kept is None else self._kept.get(index)
        return kept or LazyImage(self.paths[index])

    def _keep(self, index: int, photo: LazyImage) -> None:
        """Keep a photograph that was read; or none any more, if that is too much."""
        if self._kept is not None:
            self._kept[index] = photo
            self._room -= photo.grown()
            if self._room < 0:
                self._kept = None


class Images(ImageFiles):
    """Two random views of every image in a folder, at any depth; see `ImageFiles`.

    Args:
        root: the folder.
        transform: makes the views.
        seed: the experiment's seed.
        errors: what to do about a file that cannot be read.
        names: text file that names the images to take; see `FolderImages`. None takes all.
        keep: bytes of decoded images to keep, see `ImageFiles`.

    Raises:
        FileNotFoundError: the folder or the list does not exist, or the folder holds no image.
        NotADirectoryError: the path is a file.
        ValueError: the list is empty, or names images that the folder does not have.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Views,
        seed: int = 0,
        errors: Errors = "skip",
        names: str | Path | None = None,
        keep: int = 0,
    ) -> None:
        super().__init__(FolderImages(root, names).paths, transform, seed, errors, keep)


class SamplePhotos(ImageFiles):
    """Two random views of the nine photographs that scikit-image and scikit-learn ship.

    Nothing is downloaded: these files lie inside the two installed packages. `names` says what
    they show; see `ImageFiles` for the items.

    Args:
        transform: makes the views.
        seed: the experiment's seed.
        keep: bytes of decoded images to keep, see `ImageFiles`.

    Raises:
        FileNotFoundError: one of the packages is missing, or without its pictures.
    """

    names = (
        "astronaut",
        "cat",
        "coffee",
        "rocket",
        "motorcycle",
        "retina",
        "histology",
        "temple",
        "flower",
    )

    def __init__(self, transform: Views, seed: int = 0, keep: int = 0) -> None:
        super().__init__(sample_paths(), transform, seed, errors="raise", keep=keep)


_SAMPLES = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/ihc.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)


def sample_paths() -> list[Path]:
    """The files of `SamplePhotos`, in the order of its names.

    Raises:
        FileNotFoundError: one of the packages is missing, or without its pictures.
    """
    paths = []
    for package, name in _SAMPLES:
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0], name) if folders else None
        if path is None or not path.is_file():
            raise FileNotFoundError(
                f"the sample photographs need {name} inside the package {package}: "
                "pip install scikit-image scikit-learn"
            )
        paths.append(path)
    return paths


class PredictionImages(Dataset[dict[str, Any]]):
    """Images to predict, each at its own size, with what brings predictions back to the source.

    An item is what `Evaluation` returns, with ``index``, () int64, and ``path``, a string. A file
    that cannot be read stops the run, by name: a missing prediction should never pass unnoticed.

    Args:
        paths: the files.
        transform: resizing and normalisation.

    Raises:
        ImageReadError: (when asked for an item) an unreadable file.
    """

    def __init__(self, paths: Sequence[Path], transform: Evaluation = NATIVE) -> None:
        self.paths = list(paths)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image."""
        path = self.paths[index]
        try:
            sample = self.transform(LazyImage(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return {**sample, "index": torch.tensor(index), "path": str(path)}
