"""Labelled images to train on: random scale, crop and flip of image and label together."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from densesiam.data.image.frame import nearest
from densesiam.data.order.draws import Draw, chance, seeded_generator, uniform
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.data.sets.substitutes import Errors, Substitutes
from densesiam.data.views.paired import output_size


class LabelledCrops(Dataset[dict[str, Tensor]]):
    """Random crops of labelled images, for training on labels.

    An item is a dict of ``image`` (3, h, w) float32, ``label`` (h, w) int64, ``index`` and
    ``skipped`` () int64, as of `ImageFiles`.
    The image is scaled by U(scale), cut to size at a random position, and mirrored with probability
    `p_flip`; the label follows, nearest pixel. What a scaled image lacks of the size is filled to
    the right and below: with ImageNet's mean colour, and void. Draws follow from seed, epoch,
    repetition and index alone; a plain number for an index draws afresh (`Draw.of`).

    Args:
        dataset: the labelled images, labels as large as they are.
        size: side of the crops, or height and width.
        scale: least and greatest scale.
        p_flip: probability of mirroring.
        seed: the experiment's seed.
        errors: what to do about a file that cannot be read, see `ImageFiles`.

    Raises:
        ValueError: a value out of its range; when asked for an item, a label of another size than
            its image.
    """

    def __init__(
        self,
        dataset: LabelledFiles,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        p_flip: float = 0.5,
        seed: int = 0,
        errors: Errors = "raise",
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be 0 < least <= greatest, got {scale}")
        self.dataset = dataset
        self.size = output_size(size)
        self.scale = scale
        self.p_flip = p_flip
        self.seed = seed
        self._files = Substitutes(len(dataset), dataset.__getitem__, errors)

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [image for image, _ in self.dataset.paths]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw | int) -> dict[str, Tensor]:
        """A crop of one image, as drawn for one epoch and repetition, or afresh."""
        draw = Draw.of(draw)
        generator = seeded_generator(self.seed, draw.epoch, draw.repetition, draw.index)
        sample, index, skipped = self._files.find(draw, dict)
        image, label = sample["image"], sample["label"]
        if label.shape != image.shape[1:]:
            raise ValueError(
                f"labels of {tuple(label.shape)} for an image of {tuple(image.shape[1:])}: leave "
                "full_size_labels to evaluation"
            )
        scale = uniform(generator, *self.scale)
        low, high = [], []  # edges of the window in the image, rows before columns
        for length, side in zip(label.shape, self.size, strict=True):
            window = max(1, min(length, round(side / scale)))
            start = int(uniform(generator, 0, length - window + 1))
            low.append(start)
            high.append(start + window)
        image = image[:, low[0] : high[0], low[1] : high[1]]
        label = label[low[0] : high[0], low[1] : high[1]]

        # The window is smaller than the crop where the image is: the rest is filled.
        height, width = (
            min(side, max(1, round(length * scale)))
            for side, length in zip(self.size, label.shape, strict=True)
        )
        image = F.interpolate(
            image[None], (height, width), mode="bilinear", align_corners=False, antialias=True
        )[0]
        rows, columns = nearest(height, 0, label.shape[0]), nearest(width, 0, label.shape[1])
        label = label[rows[:, None], columns]
        fill = (0, self.size[1] - width, 0, self.size[0] - height)
        image = F.pad(image, fill)
        label = F.pad(label, fill, value=self.dataset.ignore_index)
        if chance(generator, self.p_flip):
            image, label = image.flip(2), label.flip(1)
        return {
            "image": image,
            "label": label,
            "index": torch.tensor(index),
            "skipped": torch.tensor(skipped),
        }
