"""A tiny model and tiny batches."""

import torch

from densesiam import ops
from densesiam.geometry import frame_boxes
from densesiam.methods import DenseSiamSegmentation


def tiny(**options):
    """A model of 0.1 M parameters whose RegionSim is on from the start."""
    defaults = {
        "num_classes": 5,
        "aux_classes": 12,
        "hidden_channels": 16,
        "region_start": 0,
        "backbone": "test_resnet",
        "strides": (4, 8),
        "channels": 16,
        "lr": 0.05,
    }
    return DenseSiamSegmentation(**(defaults | options))


def batch(size=4, height=32, width=48, seed=0):
    """Noise in two views; view 1 lies within view 2, and every other one is mirrored."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, size, 3, height, width, generator=generator)
    crop1 = torch.tensor([[10.0, 5.0, 70.0, 45.0]]).repeat(size, 1)
    return {
        "view1": views[0],
        "view2": views[1],
        "crop1": crop1 + torch.rand(size, 1, generator=generator),
        "crop2": torch.tensor([[0.0, 0.0, 96.0, 64.0]]).repeat(size, 1),
        "flip1": torch.arange(size) % 2 == 1,
        "flip2": torch.zeros(size, dtype=torch.bool),
        "index": torch.arange(size),
    }


def scenes(size=8):
    """A batch whose two views do show one scene: blocks of four colours, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    palette = 1.5 * torch.randn(4, 3, generator=generator)
    blocks = palette[torch.randint(0, 4, (size, 4, 6), generator=generator)].movedim(-1, 1)
    images = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)
    images = images + 0.2 * torch.randn(images.shape, generator=generator)
    result = batch(size)
    box1 = frame_boxes(*(result[name] for name in ("crop1", "crop2", "flip1", "flip2")))
    result["view1"] = ops.overlap_sample(images, box1, (32, 48))
    result["view2"] = images
    return result


def apart(whole):
    """The items of a batch, one dict each."""
    return [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]
