"""Lightning's data modules of unlabelled images: two views to train on, and prediction."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from densesiam.data.image.files import find_images
from densesiam.data.image.transform import NATIVE, Evaluation
from densesiam.data.modules.loading import LoadingModule, ScoringModule
from densesiam.data.sets.images import (
    ImageFiles,
    Images,
    PredictionImages,
    SamplePhotos,
    sample_paths,
)
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.unlabelled import ImageList
from densesiam.data.views.paired import SegmentationViews, TwoCrops, Views

KEPT = 1 << 26
"""Bytes of decoded training images that a process keeps, where that is all of them."""


class TwoViewData(LoadingModule):
    """Two views of unlabelled images to train on.

    Batches are `Views` with ``index``; every one is full, the rest of an epoch is left out.

    Args:
        train: folder of images, "samples" for `SamplePhotos`, or an `ImageList`, such as the split
            of a data set.
        views: what to train on.
        **loading: the arguments of `LoadingModule`.
    """

    def __init__(self, train: ImageList | str | None, views: Views, **loading: Any) -> None:
        super().__init__(**loading)
        self.train = train
        self.views = views

    def training_set(self) -> ImageFiles:
        """The views.

        Raises:
            ValueError: no images were given.
        """
        if self.train is None:
            raise ValueError('no training data: give data.train, a folder of images or "samples"')
        if self.train == "samples":
            return SamplePhotos(self.views, self.seed, KEPT)
        if isinstance(self.train, ImageList):
            return ImageFiles(self.train.paths, self.views, self.seed, self.errors, KEPT)
        return Images(self.train, self.views, self.seed, self.errors, keep=KEPT)


class SegmentationData(TwoViewData, ScoringModule):
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
        **loading: the arguments of `LoadingModule`.
    """

    def __init__(
        self,
        train: ImageList | str | None = None,
        val: LabelledFiles | None = None,
        predict: str | None = None,
        views: Views | None = None,
        predict_transform: Evaluation = NATIVE,
        **loading: Any,
    ) -> None:
        super().__init__(train, SegmentationViews() if views is None else views, **loading)
        self.val = val
        self.predict = predict
        self.predict_transform = predict_transform

    def validation_set(self) -> LabelledFiles | None:
        """The labelled images."""
        return self.val

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
        return self._loader(PredictionImages(paths, self.predict_transform), batch_size=1)


class PretrainingData(TwoViewData):
    """Two random crops of unlabelled images; see `TwoViewData`.

    Args:
        train: folder of images, at any depth, "samples" for `SamplePhotos`, or an `ImageList`, such
            as `ImageNetImages`, `CocoImages` or `VocImages`.
        views: what to train on; None for `TwoCrops` with its defaults, MoCo v2's augmentation.
        **loading: the arguments of `LoadingModule`.
    """

    def __init__(
        self, train: ImageList | str | None = None, views: Views | None = None, **loading: Any
    ) -> None:
        # There is nothing to score, and no setting for it.
        super().__init__(train, TwoCrops() if views is None else views, val_batch_size=1, **loading)
