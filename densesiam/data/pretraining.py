"""Lightning's view of the data of pre-training."""

from typing import Literal

from densesiam.data.module import TwoViewData
from densesiam.data.unlabelled import ImageList
from densesiam.data.views import TwoCrops, Views


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
        errors: Literal["skip", "raise"] = "skip",
    ) -> None:
        views = TwoCrops() if views is None else views
        super().__init__(train, views, batch_size, samples_per_epoch, num_workers, seed, errors)
