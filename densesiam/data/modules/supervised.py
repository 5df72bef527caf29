"""Lightning's view of labelled data, whatever the labels are."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import default_collate

from densesiam.data.modules.loading import ScoringModule
from densesiam.data.sets.classified import ClassifiedImages
from densesiam.data.sets.crops import LabelledCrops
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.layout import listing
from densesiam.data.sets.objects import DetectionSamples, ObjectImages


class SupervisedData(ScoringModule):
    """Labelled samples to train on and to score, of the same classes.

    Args:
        train: what to train on.
        val: what to score.
        batch_size: samples in a training batch, on each process.
        **loading: the arguments of `LoadingModule`.
    """

    def __init__(
        self, train: Any = None, val: Any = None, batch_size: int = 16, **loading: Any
    ) -> None:
        super().__init__(batch_size, **loading)
        self.train = train
        self.val = val

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes.

        Raises:
            ValueError: no data was given, or two sets of different classes.
        """
        names = [list(each) for each in self._names()]
        if not names:
            raise ValueError("nothing to learn or to score: give data.train and data.val")
        if names[0] != names[-1]:
            differing = sorted(set(names[0]) ^ set(names[-1]))
            raise ValueError(
                "data.train and data.val differ in their classes: "
                + (f"only one has {listing(differing)}" if differing else "their order")
            )
        return names[0]

    def _names(self) -> list[Sequence[str]]:
        """Of each set that was given, the names of its classes."""
        return [data.classes for data in self._given()]

    def _given(self) -> list[Any]:
        return [data for data in (self.train, self.val) if data is not None]

    def _to_train_on(self) -> Any:
        """What was given to train on.

        Raises:
            ValueError: nothing was.
        """
        if self.train is None:
            raise ValueError("nothing to train on: give data.train")
        return self.train


class LabelledData(SupervisedData):
    """Random crops of labelled images to train on, and whole labelled images to score.

    Args:
        train: labelled images to train on.
        val: labelled images to score.
        size: side of the training crops, or height and width.
        scale: least and greatest scale of the images that they are cut from.
        p_flip: probability of mirroring.
        **loading: the arguments of `SupervisedData`.
    """

    def __init__(
        self,
        train: LabelledFiles | None = None,
        val: LabelledFiles | None = None,
        size: int | tuple[int, int] = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        p_flip: float = 0.5,
        **loading: Any,
    ) -> None:
        super().__init__(train, val, **loading)
        self.size = size
        self.scale = scale
        self.p_flip = p_flip

    def _names(self) -> list[Sequence[str]]:
        return [data.classes.names for data in self._given()]

    @property
    def ignore_index(self) -> int:
        """Label of void.

        Raises:
            ValueError: two sets with different ones.
        """
        found = {data.ignore_index for data in self._given()}
        if len(found) > 1:
            raise ValueError(f"data.train and data.val differ in ignore_index: {sorted(found)}")
        return found.pop() if found else 255

    def training_set(self) -> LabelledCrops:
        """The crops."""
        train = self._to_train_on()
        return LabelledCrops(train, self.size, self.scale, self.p_flip, self.seed, self.errors)

    def validation_set(self) -> LabelledFiles | None:
        """The whole images."""
        return self.val


class ClassifiedData(SupervisedData):
    """Images of classes to train on and to score: ``train/CLASS/*.jpg``, ``val/CLASS/*.jpg``.

    Args:
        train: folder of the training images.
        val: folder of those to score.
        size: side of the images.
        resize: shorter side of the images to score, before the centre is cut out.
        batch_size: images in a training batch, on each process.
        val_batch_size: images in a validation batch, on each process.
        **loading: the arguments of `SupervisedData`.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        size: int = 224,
        resize: int = 256,
        batch_size: int = 256,
        val_batch_size: int = 64,
        **loading: Any,
    ) -> None:
        super().__init__(train, val, batch_size, val_batch_size=val_batch_size, **loading)
        self.size = size
        self.resize = resize

    def _given(self) -> list[ClassifiedImages]:
        sets = (None if self.train is None else self.trained_on, self.scored_on)
        return [images for images in sets if images is not None]

    def training_set(self) -> ClassifiedImages:
        """Random crops."""
        return ClassifiedImages(self._to_train_on(), self.size, None, self.seed, self.errors)

    def validation_set(self) -> ClassifiedImages | None:
        """Centre crops."""
        return None if self.val is None else ClassifiedImages(self.val, self.size, self.resize)


class DetectionData(SupervisedData):
    """Annotated images to train a detector on, and to score it on.

    Args:
        train: annotated images to train on.
        val: annotated images to score.
        **loading: the arguments of `SupervisedData`.
    """

    def __init__(
        self, train: ObjectImages | None = None, val: ObjectImages | None = None, **loading: Any
    ) -> None:
        super().__init__(train, val, **loading)

    def training_set(self) -> DetectionSamples:
        """The images with something to learn, mirrored at random."""
        return DetectionSamples(self._to_train_on(), True, self.seed, self.errors)

    def validation_set(self) -> DetectionSamples | None:
        """All images, as they are."""
        return None if self.val is None else DetectionSamples(self.val, training=False)

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Lists of images and targets, since sizes and numbers of objects differ."""
        return {
            "images": [sample["image"] for sample in samples],
            "targets": [sample["target"] for sample in samples],
            "counts": default_collate([sample["counts"] for sample in samples]),
            "index": default_collate([sample["index"] for sample in samples]),
            "skipped": default_collate([sample["skipped"] for sample in samples]),
        }
