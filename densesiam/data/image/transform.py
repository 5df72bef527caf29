"""Deterministic transform of images and labels, and the way back to the source's pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densesiam.data.image.frame import Frame, check_frame, nearest, to_normalised
from densesiam.data.image.lazy import Decode, LazyImage, Part, check_decode, read_parts


@dataclass(frozen=True)
class Evaluation:
    """Resize the shorter side, crop the centre, normalise. Nothing is random, nothing is padded.

    The defaults keep the source's own size; `resize=320, crop=320` is the usual protocol of
    unsupervised segmentation. The frame is continuous: image and label are read from exactly the
    same box of the source.

    The result is a dict:

    =========== ================== ===========================================================
    image       (3, h, w) float32  normalised with ImageNet's mean and standard deviation
    label       (h, w) int64       only where a label is given; nearest pixel. With
                                   `full_size_labels` as large as what is shown is in the source
    box         (4,) float32       left, top, right, bottom of what is shown, in source pixels
    source_size (2,) int64         height and width of the source
    =========== ================== ===========================================================

    `to_source` brings a label map of the image back to the source's pixels.

    Args:
        resize: shorter side before the crop; None keeps the source's pixels.
        crop: side of the centre crop; None keeps the whole image.
        full_size_labels: keep the source's pixels in labels, so that scores at different sizes of
            the image compare.
        decode: "reduced" decodes a file no finer than its image needs, see `LazyImage`; or "full".

    Raises:
        ValueError: a value out of its range, or (when called) an image smaller than the crop.
    """

    resize: int | None = None
    crop: int | None = None
    full_size_labels: bool = False
    decode: Decode = "reduced"

    def __post_init__(self) -> None:
        check_frame(self.resize, self.crop)
        check_decode(self.decode)

    @property
    def description(self) -> str:
        """What becomes of an image, in words."""
        size = "source's size" if self.resize is None else f"shorter side {self.resize} pixels"
        crop = "no crop" if self.crop is None else f"centre crop {self.crop} x {self.crop}"
        return f"{size}, {crop}"

    def sizes(self, source: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of image and of label, of a source of (width, height) pixels.

        Raises:
            ValueError: the crop is larger than the image.
        """
        frame = Frame.of(source, self.resize, self.crop)
        size = round(frame.height), round(frame.width)
        if not self.full_size_labels:
            return size, size
        left, top, right, bottom = frame.in_source(frame.whole)
        return size, (round(bottom - top), round(right - left))

    def __call__(
        self, image: Image.Image | LazyImage, label: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """Transform an 8-bit RGB image and, where there is one, its (H, W) label."""
        frame = Frame.of(image.size, self.resize, self.crop)
        box = frame.in_source(frame.whole)
        (height, width), label_size = self.sizes(image.size)
        (shown,) = read_parts(image, [Part(box, (height, width), flip=False)], self.decode)
        sample = {"image": to_normalised(shown)}
        if label is not None:
            left, top, right, bottom = box
            rows, columns = nearest(label_size[0], top, bottom), nearest(label_size[1], left, right)
            sample["label"] = torch.from_numpy(label[rows[:, None], columns]).long()
        sample["box"] = torch.tensor(box, dtype=torch.float32)
        sample["source_size"] = torch.tensor([image.height, image.width])
        return sample


NATIVE = Evaluation()
"""Every image at its own size."""


def to_source(labels: Tensor, box: Tensor, source_size: Tensor, outside: int) -> Tensor:
    """Bring one label map back to the pixels of its source image, nearest cell.

    Args:
        labels: (h, w) integers.
        box: (4,) the part of the source that the map shows, as `Evaluation` returns it.
        source_size: (2,) height and width of the source.
        outside: value for the source's pixels that the map does not show.

    Returns:
        (H, W) labels at the source's size, of the same type and device.
    """
    rows, inside_rows = _cells(labels.shape[0], box[1::2], int(source_size[0]), labels.device)
    columns, inside_columns = _cells(labels.shape[1], box[0::2], int(source_size[1]), labels.device)
    inside = inside_rows[:, None] & inside_columns
    return torch.where(inside, labels[rows[:, None], columns], outside)


def _cells(count: int, edges: Tensor, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of `count` cells between two edges holds each of `length` pixels, and whether any."""
    low, high = edges.double().tolist()
    centres = torch.arange(length, device=device, dtype=torch.float64) + 0.5
    cells = ((centres - low) * (count / (high - low))).floor().long()
    return cells.clamp(0, count - 1), (cells >= 0) & (cells < count)
