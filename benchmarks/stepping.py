"""A training step, encoder and optimizer included, next to others' of the same networks.

- SimSiam with a ResNet-18: ours (`DenseSiamPretraining` without its dense losses) and the same of
  lightly's heads and loss over torchvision's network.
- The segmentation method with a ResNet-18 and its pyramid: ours, and the same with every operation
  as its composition in plain PyTorch.
- What `densesiam fit` does with configs/folder.yaml and configs/demo.yaml, from files to the next
  weights: as it is; and as it was, with photographs decoded whole, each time anew, and the frozen
  backbone's normalisation apart.

Where the processor has bfloat16, ours are timed in it too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.models import resnet18

from benchmarks import predicting
from benchmarks.run import BACKENDS
from benchmarks.training_step import make_batch, paper_model, step
from densesiam.cli.shipped import CONFIGS
from densesiam.data import ImageFiles, SamplePhotos, SegmentationViews
from densesiam.data.image.lazy import Decode
from densesiam.data.modules.two_views import KEPT
from densesiam.data.order.draws import Draw
from densesiam.geometry import overlap_boxes
from densesiam.methods import DenseSiamPretraining, DenseSiamSegmentation
from densesiam.ops._backends import missing
from densesiam.training.precision import has_bfloat16

SIMSIAM, SEGMENTATION, FIT = 128, 160, 224  # sides of the views, in pixels
SHORTER = 256  # of the photographs in FIT


def simsiam(files: Sequence[Path]) -> dict[str, Any]:
    """Steps of as many images as there are files.

    Returns:
        By name, a function of the files and the round.
    """
    batch = make_batch(len(files), SIMSIAM, SIMSIAM)
    names = ("crop1", "crop2", "flip1", "flip2")
    boxes1, boxes2, valid = overlap_boxes(*(batch[name] for name in names))
    model = DenseSiamPretraining(lambda1=0, lambda2=0, backbone="resnet18", weights=None).train()

    def ours() -> Tensor:
        f1, f2 = model.encoder(batch["view1"]), model.encoder(batch["view2"])
        return model.losses(f1, f2, boxes1, boxes2, valid)["sim"]

    found = {f"ours{name}": _step(model, loss) for name, loss in _both(ours).items()}
    if importlib.util.find_spec("lightly"):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        backbone = nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())
        projector = SimSiamProjectionHead(512, 2048, 2048)
        predictor = SimSiamPredictionHead(2048, 512, 2048)
        criterion = NegativeCosineSimilarity()
        modules = nn.ModuleList([backbone, projector, predictor]).train()

        def lightly() -> Tensor:
            z1, z2 = (projector(backbone(batch[view])) for view in ("view1", "view2"))
            p1, p2 = predictor(z1), predictor(z2)
            return 0.5 * (criterion(p1, z2.detach()) + criterion(p2, z1.detach()))

        found["lightly"] = _step(modules, lightly)
    return found


def _both(work: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Work as it is and, where the processor has it, in bfloat16."""

    def half(*arguments: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return work(*arguments)

    return {"": work, ", bfloat16": half} if has_bfloat16("cpu") else {"": work}


def _step(modules: nn.Module, loss: Callable[[], Tensor]) -> Any:
    optimizer = torch.optim.SGD(modules.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def run(paths: Sequence[Path], number: int) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def segmentation(files: Sequence[Path]) -> dict[str, Any]:
    """The same of the segmentation method; forward and backward."""
    model = paper_model()
    batch = make_batch(len(files), SEGMENTATION, SEGMENTATION)
    found = {
        f"ours{name}": run
        for name, run in _both(lambda paths, number: step(model, batch, _own())).items()
    }
    return {**found, "plain PyTorch": lambda paths, number: step(model, batch, "reference")}


def _own() -> str:
    return next(name for name in (*BACKENDS, "reference") if missing(name) is None)


def fit(files: Sequence[Path]) -> dict[str, Any]:
    """Steps of folder.yaml's, of as many photographs as there are files, from the files on."""

    def views(decode: Decode, keep: int) -> ImageFiles:
        return ImageFiles(files, SegmentationViews(FIT, SHORTER, None, decode=decode))

    return _fits(lambda: predicting.network(files), views)


def fit_demo(files: Sequence[Path]) -> dict[str, Any]:
    """The same of the demo's, whose photographs fit into memory; no others are read."""
    config = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    options, cut = config["model"], config["data"]["views"]["init_args"]
    options |= {"weights": None, "region_start": 0}  # others take as long; and all of the losses

    def views(decode: Decode, keep: int) -> ImageFiles:
        size = tuple(cut["size"])
        return SamplePhotos(SegmentationViews(size, cut["resize"], None, decode=decode), keep=keep)

    return _fits(lambda: DenseSiamSegmentation(**options), views)


def _fits(
    make: Callable[[], DenseSiamSegmentation], read: Callable[[Decode, int], ImageFiles]
) -> dict[str, Any]:
    found = {}
    ways: list[tuple[str, Decode, int]] = [("ours", "reduced", KEPT), ("as it was", "full", 0)]
    for name, decode, keep in ways:
        model, views = make().train(), read(decode, keep)
        if keep:
            model.encoder.fold()
        for type_, run in reversed(_both(_fitting(model, views)).items()):
            found[f"{name}{type_}"] = run
    return found


def _fitting(model: DenseSiamSegmentation, views: ImageFiles) -> Any:
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.01, 0.9)

    def run(paths: Sequence[Path], number: int) -> None:
        step(model, default_collate([views[Draw(i, number, 0)] for i in range(len(paths))]), _own())
        optimizer.step()

    return run
