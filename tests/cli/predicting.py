"""A tiny segmenter's checkpoint, which no training has to make."""

import numpy as np
import torch
import yaml
from PIL import Image

from densesiam.methods import DenseSiamSegmentation, Method
from densesiam.training.checkpoints import CheckpointConfig
from densesiam.transfer import SegmentationTransfer
from densesiam.transfer.base import Supervised
from tests.data.support import noise

MODEL = {
    "num_classes": 3,
    "aux_classes": 6,
    "hidden_channels": 8,
    "channels": 8,
    "backbone": "test_resnet",
    "strides": [4, 8],
}


def save_segmenter(path, resize=40, **model):
    """Write a checkpoint as a training leaves it, of random weights whose categories all occur."""
    torch.manual_seed(0)
    built = DenseSiamSegmentation(**{**MODEL, **model})
    # As built, batch normalisation passes on the features' means, and one category wins everywhere.
    built.train()
    with torch.no_grad():
        for _ in range(8):
            built(torch.randn(4, 3, 40, 40))
    checkpoint = {
        "state_dict": built.state_dict(),
        "hyper_parameters": dict(built.hparams),
        "pytorch-lightning_version": "2.6.0",
        Method.KEY: "DenseSiamSegmentation",
        CheckpointConfig.KEY: f"data: {{predict_transform: {{resize: {resize}}}}}\n",
    }
    torch.save(checkpoint, path)
    return path


def save_photo(path, width=50, height=40, seed=0, **options):
    """A photograph of a few blots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(6, 5, seed).resize((width, height)).save(path, **options)
    return path


def save_labelled(root, sizes=((50, 40), (40, 60)), classes=("sky", "road", "car")):
    """Photographs and labels in a folder, and the setting that describes them."""
    for i, (width, height) in enumerate(sizes):
        save_photo(root / "images" / f"{i}.png", width, height, seed=i)
        labels = np.random.default_rng(i).integers(0, len(classes), (5, 6), dtype=np.uint8)
        (root / "labels").mkdir(exist_ok=True)
        picture = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        picture.save(root / "labels" / f"{i}.png")
    folders = {kind: str(root / kind) for kind in ("images", "labels")}
    return {
        "class_path": "LabelledImages",
        "init_args": {**folders, "classes": {"names": list(classes)}},
    }


def save_transfer(path, val=None, classes=("sky", "road", "car")):
    """Write a checkpoint of `transfer segmentation`, which was scored on `val`."""
    torch.manual_seed(0)
    settings = {"backbone": "test_resnet", "strides": [8], "output_stride": 32, "head": "linear"}
    built = SegmentationTransfer(list(classes), **settings)
    checkpoint = {
        "state_dict": built.state_dict(),
        "hyper_parameters": dict(built.hparams),
        "pytorch-lightning_version": "2.6.0",
        Supervised.KEY: "SegmentationTransfer",
        CheckpointConfig.KEY: yaml.safe_dump({"data": {"val": val}}),
    }
    torch.save(checkpoint, path)
    return path
