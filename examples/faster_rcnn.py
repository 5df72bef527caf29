"""torchvision's Faster R-CNN with this project's roi_align: one line, the same outputs.

    python examples/faster_rcnn.py

Runs a training step and a detection with torchvision's roi_align and with `ops.roi_align`, from the
same random weights on the same random image, and prints how far losses, gradients and detections
are apart: by rounding. On a GPU the gradients of ours are the same every time, without
`torch.use_deterministic_algorithms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, fasterrcnn_mobilenet_v3_large_320_fpn

from densesiam import ops


@contextmanager
def our_roi_align() -> Iterator[None]:
    """Every box head in this block uses `ops.roi_align`."""
    poolers: Any = import_module("torchvision.ops.poolers")
    theirs = poolers.roi_align
    # The one line. torchvision's pooler calls its function with `output_size` by keyword.
    poolers.roi_align = lambda maps, boxes, output_size, **how: ops.roi_align(
        maps, boxes, output_size, **how
    )
    try:
        yield
    finally:
        poolers.roi_align = theirs


def make() -> tuple[FasterRCNN, Tensor, dict[str, Tensor]]:
    """A small detector with random weights, an image, and three objects in it."""
    torch.manual_seed(0)
    sizes: dict[str, int] = {"min_size": 128, "max_size": 192, "box_batch_size_per_image": 64}
    sizes |= {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50}
    # In float64, so that rounding does not decide which boxes are kept.
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, box_score_thresh=0.0, **sizes
    ).double()
    image = torch.rand(3, 200, 300, dtype=torch.float64)
    boxes = torch.tensor([[20.0, 30, 120, 150], [150, 20, 280, 90], [100, 80, 260, 190]])
    target = {"boxes": boxes.double(), "labels": torch.tensor([1, 2, 3])}
    return model, image, target


def run() -> dict[str, Tensor]:
    """Losses and gradients of a training step, and what the untrained network detects."""
    model, image, target = make()
    model.train()
    losses = model([image], [target])
    sum(losses.values(), torch.zeros(())).backward()
    found = {name: loss.detach() for name, loss in losses.items()}
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    found["gradients"] = torch.cat(gradients)
    model.eval()
    with torch.no_grad():
        (detections,) = model([image])
    return found | {f"detected {name}": values for name, values in detections.items()}


def main() -> None:
    """Print both."""
    theirs = run()
    with our_roi_align():
        ours = run()
    for name, expected in theirs.items():
        same = ours[name].shape == expected.shape
        apart = (ours[name] - expected).abs().max().item() if same and expected.numel() else 0.0
        print(
            f"{name:18} {expected.numel():9} numbers, up to {expected.abs().max():10.4f}; "
            + (f"apart by {apart:.1e}" if same else f"ours are {ours[name].numel()}")
        )


if __name__ == "__main__":
    main()
