"""Lightning's data modules of unlabelled images: two views to train on, and prediction."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, default_collate

from densesiam.data.image.files import find_images
from densesiam.data.image.transform import NATIVE, Evaluation
from densesiam.data.modules.loading import LoadingModule, WatchedLoader
from densesiam.data.order.sampler import EvaluationSampler
from densesiam.data.sets.images import (
    ImageFiles,
    Images,
    PredictionImages,
    SamplePhotos,
    sample_paths,
)
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.substitutes import Errors
from densesiam.data.sets.unlabelled import ImageList
from densesiam.data.views.paired import SegmentationViews, TwoCrops, Views


class TwoViewData(LoadingModule):
    """Two views of unlabelled images to train on.

    Batches are `Views` with ``index``; every one is full, the rest of an epoch is left out.

    Args:
        train: folder of images, "samples" for `SamplePhotos`, or an `ImageList`, such as the split
            of a data set.
        views: what to train on.
        batch_size: images in a batch, on each process.
        samples_per_epoch: draws in an epoch, over all processes. More than there are images
            repeats them with fresh draws; fewer is a random part. None: each image once.
        num_workers: processes that load data, for each loader; 0 loads in the main process.
        seed: all draws and orders follow from it.
        errors: what to do about images that cannot be read; see `ImageFiles`.
        max_unreadable: share of an epoch's images, rounded up; if more cannot be read, training
            ends.
        worker_timeout: seconds to wait for a batch from processes that load data; 0 waits for ever.

    Raises:
        ValueError: a size below 1, a negative number of workers or seed.
    """

    def __init__(
        self,
        train: ImageList | str | None,
        views: Views,
        batch_size: int,
        samples_per_epoch: int | None,
        num_workers: int,
        seed: int,
        errors: Errors,
        max_unreadable: float,
        worker_timeout: float,
    ) -> None:
        super().__init__()
        if min(batch_size, 1 if samples_per_epoch is None else samples_per_epoch) < 1:
            raise ValueError(
                "batch_size and samples_per_epoch must be at least 1, got "
                f"{batch_size}, {samples_per_epoch}"
            )
        self.train = train
        self.views = views
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.num_workers = num_workers
        self.seed = seed
        self.errors = errors
        self.max_unreadable = max_unreadable
        self.worker_timeout = worker_timeout
        self._check()

    def train_dataloader(self) -> DataLoader:
        """Loader of the views.

        Raises:
            ValueError: no training data given, or not enough for one batch.
        """
        if self.train is None:
            raise ValueError('no training data: give `train`, a folder of images or "samples"')
        dataset: ImageFiles
        if self.train == "samples":
            dataset = SamplePhotos(self.views, self.seed)
        elif isinstance(self.train, ImageList):
            dataset = ImageFiles(self.train.paths, self.views, self.seed, self.errors)
        else:
            dataset = Images(self.train, self.views, self.seed, self.errors)
        num_replicas, _ = self._place()
        samples = self.samples_per_epoch or len(dataset)
        if samples // num_replicas < self.batch_size:
            raise ValueError(
                f"fewer images than the batch: {samples} samples an epoch on {num_replicas} "
                f"process(es) do not fill one batch of {self.batch_size}; lower `batch_size`, or "
                "raise `samples_per_epoch` so that images repeat with fresh draws"
            )
        sampler = self._training_order(len(dataset), samples)
        return WatchedLoader(
            dataset, self.batch_size, sampler=sampler, drop_last=True, **self._loading()
        )


class SegmentationData(TwoViewData):
    """Views of unlabelled images to train on, labelled images to evaluate, images to predict.

    - Training batches: those of `TwoViewData`.
    - Validation batches: `Evaluation` of image and label with ``index``.
    - Prediction batches: one image, `Evaluation` with ``index`` and ``path`` (a list of one).

    Args:
        train: folder of images, "samples" for `SamplePhotos`, or an `ImageList`, such as the split
            of a data set.
        val: labelled images to evaluate on.
        predict: folder of images, one image file, or "samples".
        views: what to train on; None for `SegmentationViews` with its defaults.
        predict_transform: resizing of the images to predict.
        batch_size: images in a training batch, on each process.
        val_batch_size: images in a validation batch, on each process; images that are neither
            cropped nor of one size need 1.
        samples_per_epoch: draws in a training epoch, over all processes. More than there are
            images repeats them with fresh draws; fewer is a random part. None: each image once.
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
        train: ImageList | str | None = None,
        val: LabelledFiles | None = None,
        predict: str | None = None,
        views: Views | None = None,
        predict_transform: Evaluation = NATIVE,
        batch_size: int = 32,
        val_batch_size: int = 1,
        samples_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        errors: Errors = "skip",
        max_unreadable: float = 0.1,
        worker_timeout: float = 600.0,
    ) -> None:
        views = SegmentationViews() if views is None else views
        super().__init__(
            train,
            views,
            batch_size,
            samples_per_epoch,
            num_workers,
            seed,
            errors,
            max_unreadable,
            worker_timeout,
        )
        if val_batch_size < 1:
            raise ValueError(f"val_batch_size must be at least 1, got {val_batch_size}")
        self.val = val
        self.predict = predict
        self.predict_transform = predict_transform
        self.val_batch_size = val_batch_size

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loader of the labelled images; no loader where none were given."""
        if self.val is None:
            return []
        sampler = EvaluationSampler(len(self.val), *self._place())
        return WatchedLoader(
            self.val, self.val_batch_size, sampler=sampler, collate_fn=_collate, **self._loading()
        )

    def predict_dataloader(self) -> DataLoader:
        """Loader of the images to predict, one at a time.

        Raises:
            ValueError: no images given.
        """
        if self.predict is None:
            raise ValueError('nothing to predict: give `predict`, a folder, an image or "samples"')
        if self.predict == "samples":
            paths = sample_paths()
        elif Path(self.predict).is_file():
            paths = [Path(self.predict)]
        else:
            paths = find_images(self.predict)
        dataset = PredictionImages(paths, self.predict_transform)
        return WatchedLoader(dataset, batch_size=1, **self._loading())


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples; say what to do where their sizes differ."""
    sizes = {tuple(sample["image"].shape[1:]) for sample in samples}
    if len(sizes) > 1:
        listing = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(
            f"images of different sizes cannot share a batch: {listing} pixels; set "
            "`val_batch_size` to 1, or give the transform a `crop`"
        )
    return default_collate(samples)


class PretrainingData(TwoViewData):
    """Two random crops of unlabelled images; see `TwoViewData`.

    Args:
        train: folder of images, at any depth, "samples" for `SamplePhotos`, or an `ImageList`, such
            as `ImageNetImages`, `CocoImages` or `VocImages`.
        views: what to train on; None for `TwoCrops` with its defaults, MoCo v2's augmentation.
        batch_size: images in a batch, on each process.
        samples_per_epoch: draws in an epoch, over all processes. More than there are images
            repeats them with fresh draws; fewer is a random part. None: each image once.
        num_workers: processes that load data; 0 loads in the main process.
        seed: all draws and orders follow from it.
        errors: what to do about images that cannot be read; see `ImageFiles`.
        max_unreadable: share of an epoch's images, rounded up; if more cannot be read, training
            ends.
        worker_timeout: seconds to wait for a batch from processes that load data; 0 waits for ever.

    Raises:
        ValueError: a size below 1, a negative number of workers or seed.
    """

    def __init__(
        self,
        train: ImageList | str | None = None,
        views: Views | None = None,
        batch_size: int = 32,
        samples_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        errors: Errors = "skip",
        max_unreadable: float = 0.1,
        worker_timeout: float = 600.0,
    ) -> None:
        views = TwoCrops() if views is None else views
        super().__init__(
            train,
            views,
            batch_size,
            samples_per_epoch,
            num_workers,
            seed,
            errors,
            max_unreadable,
            worker_timeout,
        )
