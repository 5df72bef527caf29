"""Lightning's view of labelled data, whatever the labels are."""

from collections.abc import Sequence, Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from densesiam.data.modules.loading import LoadingModule, WatchedLoader
from densesiam.data.order.sampler import EvaluationSampler
from densesiam.data.sets.classified import ClassifiedImages
from densesiam.data.sets.crops import LabelledCrops
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.layout import listing
from densesiam.data.sets.objects import DetectionSamples, ObjectImages
from densesiam.data.sets.substitutes import Errors


class SupervisedData(LoadingModule):
    """Batches of labelled samples to train on, and each labelled sample once to score.

    A subclass defines `training_set` and `validation_set`, whose items are asked for by `Draw`, and
    `collate` where samples do not stack.

    Args:
        batch_size: samples in a training batch, on each process.
        val_batch_size: samples in a validation batch, on each process.
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        seed: all draws and orders follow from it.
        errors: what to do about training images that cannot be read; see `ImageFiles`.
        max_unreadable: share of an epoch's images, rounded up; if more cannot be read, training
            ends.
        worker_timeout: seconds to wait for a batch from processes that load data; 0 waits for ever.

    Raises:
        ValueError: a size below 1, a negative number of workers or seed.
    """

    def __init__(
        self,
        batch_size: int = 16,
        val_batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        errors: Errors = "skip",
        max_unreadable: float = 0.1,
        worker_timeout: float = 600.0,
    ) -> None:
        super().__init__()
        if min(batch_size, val_batch_size) < 1:
            raise ValueError(
                "batch_size and val_batch_size must be at least 1, got "
                f"{batch_size}, {val_batch_size}"
            )
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.errors = errors
        self.max_unreadable = max_unreadable
        self.worker_timeout = worker_timeout
        self._check()

    def training_set(self) -> Dataset:
        """What to train on.

        Raises:
            ValueError: nothing was given.
        """
        raise NotImplementedError  # each task has its own

    def validation_set(self) -> Dataset | None:
        """What to score; None where nothing was given."""
        raise NotImplementedError  # each task has its own

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        return default_collate(samples)

    def train_dataloader(self) -> DataLoader:
        """Loader of full, shuffled batches; the rest of an epoch is left out.

        Raises:
            ValueError: there are not enough samples for one batch.
        """
        dataset = self.training_set()
        assert isinstance(dataset, Sized)
        replicas, _ = self._place()
        if len(dataset) // replicas < self.batch_size:
            raise ValueError(
                f"fewer images than the batch: {len(dataset)} on {replicas} process(es) do not "
                f"fill one batch of {self.batch_size}; lower data.batch_size"
            )
        return WatchedLoader(
            dataset,
            self.batch_size,
            sampler=self._training_order(len(dataset), None),
            drop_last=True,
            collate_fn=self.collate,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loader of what to score; no loader where nothing was given."""
        dataset = self.validation_set()
        if dataset is None:
            return []
        assert isinstance(dataset, Sized)
        sampler = EvaluationSampler(len(dataset), *self._place())
        return WatchedLoader(
            dataset,
            self.val_batch_size,
            sampler=sampler,
            collate_fn=self.collate,
            **self._loading(),
        )


class LabelledData(SupervisedData):
    """Random crops of labelled images to train on, and whole labelled images to score.

    Args:
        train: labelled images to train on.
        val: labelled images to score; several in a batch must be of one size.
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
        super().__init__(**loading)
        self.train = train
        self.val = val
        self.size = size
        self.scale = scale
        self.p_flip = p_flip

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes.

        Raises:
            ValueError: no data was given, or two sets of different classes.
        """
        tables = [data.classes.names for data in (self.train, self.val) if data is not None]
        if not tables:
            raise ValueError("no labelled images: give data.train and data.val")
        if list(tables[0]) != list(tables[-1]):
            raise ValueError(
                f"data.train and data.val differ in their classes: {list(tables[0])} and "
                f"{list(tables[-1])}"
            )
        return list(tables[0])

    @property
    def ignore_index(self) -> int:
        """Label of void.

        Raises:
            ValueError: two sets with different ones.
        """
        found = {data.ignore_index for data in (self.train, self.val) if data is not None}
        if len(found) > 1:
            raise ValueError(f"data.train and data.val differ in ignore_index: {sorted(found)}")
        return found.pop() if found else 255

    def training_set(self) -> LabelledCrops:
        """The crops."""
        if self.train is None:
            raise ValueError("no labelled images to train on: give data.train")
        return LabelledCrops(self.train, self.size, self.scale, self.p_flip, self.seed, self.errors)

    def validation_set(self) -> LabelledFiles | None:
        """The whole images."""
        return self.val

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples.

        Raises:
            ValueError: they differ in size.
        """
        sizes = {tuple(sample["image"].shape[1:]) for sample in samples}
        if len(sizes) > 1:
            raise ValueError(
                f"images of different sizes cannot share a batch: {sorted(sizes)}; set "
                "data.val_batch_size to 1"
            )
        return default_collate(samples)


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
        errors: what to do about training images that cannot be read; see `ImageFiles`.
        max_unreadable: share of an epoch's images, rounded up; if more cannot be read, training
            ends.
        worker_timeout: seconds to wait for a batch from processes that load data; 0 waits for ever.
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
        errors: Errors = "skip",
        max_unreadable: float = 0.1,
        worker_timeout: float = 600.0,
    ) -> None:
        super().__init__(
            batch_size,
            val_batch_size,
            num_workers,
            seed,
            errors,
            max_unreadable,
            worker_timeout,
        )
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
        return ClassifiedImages(self.train, self.size, None, self.seed, self.errors)

    def validation_set(self) -> ClassifiedImages | None:
        """Centre crops."""
        return None if self.val is None else ClassifiedImages(self.val, self.size, self.resize)


class DetectionData(SupervisedData):
    """Annotated images to train a detector on, and to score it on.

    Args:
        train: annotated images to train on.
        val: annotated images to score.
        batch_size: images in a training batch, on each process.
        val_batch_size: images in a validation batch, on each process.
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        seed: all draws and orders follow from it.
        errors: what to do about training images that cannot be read; see `ImageFiles`.
        max_unreadable: share of an epoch's images, rounded up; if more cannot be read, training
            ends.
        worker_timeout: seconds to wait for a batch from processes that load data; 0 waits for ever.
    """

    def __init__(
        self,
        train: ObjectImages | None = None,
        val: ObjectImages | None = None,
        batch_size: int = 16,
        val_batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        errors: Errors = "skip",
        max_unreadable: float = 0.1,
        worker_timeout: float = 600.0,
    ) -> None:
        super().__init__(
            batch_size,
            val_batch_size,
            num_workers,
            seed,
            errors,
            max_unreadable,
            worker_timeout,
        )
        self.train = train
        self.val = val

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes.

        Raises:
            ValueError: no data was given, or two sets of different classes.
        """
        given = [list(data.classes) for data in (self.train, self.val) if data is not None]
        if not given:
            raise ValueError("no annotated images: give data.train and data.val")
        if given[0] != given[-1]:
            differing = listing(sorted(set(given[0]) ^ set(given[-1])))
            raise ValueError(
                f"data.train and data.val differ in their classes or their order: {differing}"
            )
        return given[0]

    def training_set(self) -> DetectionSamples:
        """The images with something to learn, mirrored at random."""
        if self.train is None:
            raise ValueError("no annotated images to train on: give data.train")
        return DetectionSamples(self.train, True, self.seed, self.errors)

    def validation_set(self) -> DetectionSamples | None:
        """All images, as they are."""
        return None if self.val is None else DetectionSamples(self.val, training=False)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Lists of images and targets, since sizes and numbers of objects differ."""
        return {
            "images": [sample["image"] for sample in samples],
            "targets": [sample["target"] for sample in samples],
            "counts": default_collate([sample["counts"] for sample in samples]),
            "index": default_collate([sample["index"] for sample in samples]),
            "skipped": default_collate([sample["skipped"] for sample in samples]),
        }
