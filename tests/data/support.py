"""Images whose pixels state their own position, and other small material for tests."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from densesiam.data import IMAGENET_MEAN, IMAGENET_STD, Photometric

PLAIN = Photometric(p_jitter=0, p_grey=0, p_blur=0)

STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright image is stored under each of EXIF's orientations."""


def ramps(width, height):
    """Two float images: each pixel holds its centre's x, and its centre's y."""
    x = np.broadcast_to(np.arange(width) + 0.5, (height, width))
    y = np.broadcast_to((np.arange(height) + 0.5)[:, None], (height, width))
    return [Image.fromarray(ramp.astype(np.float32)) for ramp in (x, y)]


def byte_ramps(width, height):
    """An RGB image whose red is the column and whose green the row; at most 256 each way."""
    x = np.broadcast_to(np.arange(width), (height, width))
    y = np.broadcast_to(np.arange(height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def grey_levels(view):
    """Undo the normalisation: 0 to 255, not rounded."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (view * std + mean) * 255


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save_images(folder: Path, sizes):
    """Distinct PNG images named 0.png, 1.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (width, height) in enumerate(sizes):
        noise(width, height, seed=i).save(folder / f"{i}.png")
    return folder
