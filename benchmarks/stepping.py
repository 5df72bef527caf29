"""A training step, encoder and optimizer included, next to others' of the same networks.

- SimSiam with a ResNet-18: ours (`DenseSiamPretraining` without its dense losses) and the same of
  lightly's heads and loss over torchvision's network.
- The segmentation method with a ResNet-18 and its pyramid: ours, and the same with every operation
  as its composition in plain PyTorch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.run import BACKENDS
from benchmarks.training_step import make_batch, paper_model, step
from densesiam.geometry import overlap_boxes
from densesiam.methods import DenseSiamPretraining
from densesiam.ops._backends import missing

SIMSIAM, SEGMENTATION = 128, 160  # sides of the views, in pixels


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

    found = {"ours": _step(model, ours)}
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
    own = next(name for name in (*BACKENDS, "reference") if missing(name) is None)
    backends = {"ours": own, "plain PyTorch": "reference"}
    return {
        name: lambda paths, number, backend=backend: step(model, batch, backend)
        for name, backend in backends.items()
    }
