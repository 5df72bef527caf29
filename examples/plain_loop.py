"""DenseSiam in a training loop of your own: a folder of images, PyTorch, and no Lightning.

    python examples/plain_loop.py PHOTOS --steps 500

trains a segmenter without labels and writes its weights and a label image for each photograph.
docs/own-loop.md goes through it.
"""

import argparse
import os

os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # see densesiam.cli

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from densesiam import ops
from densesiam.data import Evaluation, Images, PredictionImages, SegmentationViews
from densesiam.geometry import aligned_boxes
from densesiam.models import Encoder
from densesiam.nn import PixelSimilarity, Predictor, Projector, PseudoLabelLoss, RegionSim

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DenseSiam(nn.Module):
    """The encoder and its heads; forward takes a batch of views and gives the losses by name."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(encoder.out_channels, 128, num_classes)
        self.predictor = Predictor(num_classes, 128)
        self.region = RegionSim(encoder.out_channels)
        self.similarity = PixelSimilarity("cross_entropy")
        self.pseudo_label = PseudoLabelLoss()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses: scalars."""
        f1, f2 = self.encoder(batch["view1"]), self.encoder(batch["view2"])
        # View 2's features where view 1 lies: the same pixel then shows the same point.
        boxes, valid = aligned_boxes(batch["crop1"], batch["crop2"], batch["flip1"], batch["flip2"])
        f2 = ops.overlap_sample(f2, boxes, tuple(f1.shape[2:]))
        z1, z2 = self.projector(f1), self.projector(f2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        labels = self.pseudo_label
        similarity = self.similarity(p1, z2, valid) + self.similarity(p2, z1, valid)
        return {
            "sim": 0.5 * similarity,
            "pseudo_label": 0.5 * (labels(z1, weight=valid) + labels(z2, weight=valid)),
            "region": self.region(f1, z1, f2, z2, valid),
        }


def train(model: DenseSiam, images: Images, steps: int, batch_size: int) -> None:
    """Train by SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    sampler = RandomSampler(images, num_samples=steps * batch_size)  # all epochs, one after another
    loader = DataLoader(images, batch_size, sampler=sampler)  # each image is drawn afresh
    for step, batch in enumerate(loader):
        losses = model({name: tensor.to(DEVICE) for name, tensor in batch.items()})
        loss = losses["sim"] + losses["pseudo_label"]
        if step >= 0.8 * steps:  # before, regions mean little
            loss = loss + 0.1 * losses["region"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}:", *(f"{name} {value:.3f}" for name, value in losses.items()))


@torch.no_grad()
def segment(model: DenseSiam, images: PredictionImages, output: Path) -> None:
    """Write each image's categories at its own size, as gray levels 0 to K - 1."""
    model.eval()
    for sample in images:
        logits = model.projector(model.encoder(sample["image"][None].to(DEVICE)))
        labels = ops.label_map(logits, tuple(sample["source_size"].tolist()))[0]
        name = f"{sample['index']:04}_{Path(sample['path']).stem}.png"
        Image.fromarray(labels.to("cpu", torch.uint8).numpy()).save(output / name)


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of images, at any depth")
    parser.add_argument("--output", type=Path, default=Path("outputs/plain_loop"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--classes", type=int, default=16, help="categories to look for")
    parser.add_argument("--size", type=int, default=224, help="side of the views")
    parser.add_argument("--backbone", default="resnet18", help="any of timm's with feature maps")
    parser.add_argument("--weights", default="timm", help='"timm", a file, or "none"')
    options = parser.parse_args(args)
    weights = None if options.weights == "none" else options.weights
    model = DenseSiam(Encoder(options.backbone, weights), options.classes).to(DEVICE)
    images = Images(options.photos, SegmentationViews(options.size, resize=256, crop=None))
    train(model, images, options.steps, options.batch_size)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), options.output / "model.pt")
    segment(model, PredictionImages(images.paths, Evaluation(resize=256)), options.output)


if __name__ == "__main__":
    main()
