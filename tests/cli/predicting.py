"""A tiny segmenter's checkpoint, which no training has to make."""

import torch

from densesiam.methods import DenseSiamSegmentation, Method
from densesiam.training.checkpoints import CheckpointConfig
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
