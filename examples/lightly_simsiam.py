"""lightly's SimSiam with the fused losses: the whole image, and its pixels where the crops overlap.

    pip install lightly
    python examples/lightly_simsiam.py PHOTOS --steps 500

The heads are lightly's. `PixelSimilarity` stands where its `NegativeCosineSimilarity` did, with the
same values. PixSim is added on the overlap of the two crops, which lightly's transforms do not
tell; the views come from `TwoCrops` instead. docs/own-loop.md says more.
"""

import argparse
import os

os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # see densesiam.cli

from collections.abc import Sequence
from pathlib import Path

import torch
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from densesiam.data import Images, TwoCrops
from densesiam.geometry import overlap_boxes
from densesiam.models import Encoder
from densesiam.nn import OverlapSample, PixelSimilarity, Predictor, Projector

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DenseSimSiam(nn.Module):
    """SimSiam of lightly's parts, and the same on K x K points of the crops' overlap."""

    def __init__(self, encoder: Encoder, channels: int = 512, grid: int = 7) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = SimSiamProjectionHead(encoder.out_channels, channels, channels)
        self.predictor = SimSiamPredictionHead(channels, channels // 4, channels)
        self.dense_projector = Projector(encoder.out_channels, channels, channels)
        self.dense_predictor = Predictor(channels, channels // 4)
        self.sample = OverlapSample(grid)
        self.criterion = PixelSimilarity()  # minus the cosine; no gradient to its second argument

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses: scalars."""
        boxes1, boxes2, valid = overlap_boxes(
            batch["crop1"], batch["crop2"], batch["flip1"], batch["flip2"]
        )
        f1, f2 = self.encoder(batch["view1"]), self.encoder(batch["view2"])
        z1, z2 = self.projector(f1.mean((2, 3))), self.projector(f2.mean((2, 3)))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        # The same places of the image in both views; crops that do not meet weigh nothing.
        d1 = self.sample(self.dense_projector(f1), boxes1)
        d2 = self.sample(self.dense_projector(f2), boxes2)
        q1, q2 = self.dense_predictor(d1), self.dense_predictor(d2)
        return {
            "sim": 0.5 * (self.criterion(p1, z2) + self.criterion(p2, z1)),
            "dense": 0.5 * (self.criterion(q1, d2, valid) + self.criterion(q2, d1, valid)),
        }


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of images, at any depth")
    parser.add_argument("--output", type=Path, default=Path("outputs/lightly_simsiam"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of the views")
    parser.add_argument("--backbone", default="resnet18", help="any of timm's with feature maps")
    options = parser.parse_args(args)
    encoder = Encoder(options.backbone, strides=(32,), fpn=False)
    model = DenseSimSiam(encoder).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    images = Images(options.photos, TwoCrops(options.size))
    sampler = RandomSampler(images, num_samples=options.steps * options.batch_size)
    loader = DataLoader(images, options.batch_size, sampler=sampler)
    for step, batch in enumerate(loader):
        losses = model({name: tensor.to(DEVICE) for name, tensor in batch.items()})
        loss = losses["sim"] + losses["dense"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}:", *(f"{name} {value:.3f}" for name, value in losses.items()))
    options.output.mkdir(parents=True, exist_ok=True)
    torch.save(encoder.state_dict(), options.output / "encoder.pt")


if __name__ == "__main__":
    main()
