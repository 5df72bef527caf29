"""Everything after the encoder in pre-training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.composites.kit import (
    LIBRARY,
    RELEASE,
    Kit,
    operations,
    products_alone,
    region_loss,
    symmetric,
)
from benchmarks.device import DEVICE
from benchmarks.ops.inputs import crop_boxes, features, whole_boxes
from benchmarks.problem import Problem, Setting, Shape
from densesiam.methods import DenseSiamPretraining

SHAPES = (
    # ResNet-50's last map of 224 pixels, and one of 448; heads of 2048 channels.
    Shape("before RegionSim", 2048, 7, 7, size=7, classes=2048, own=True),
    Shape("with RegionSim", 2048, 7, 7, size=7, classes=2048, variant="regions", own=True),
    Shape("after the predictor", 2048, 14, 14, size=7, classes=2048, variant="predictor", batch=4),
)
BACKBONES = {512: "resnet18", 2048: "resnet50"}  # by the channels of their last maps
SCALED = None


def problem(shape: Shape, setting: Setting) -> Problem:
    """Reads both views' features and writes their gradients; heads and losses lie between."""
    batch, side, regions = setting.batch, shape.size, shape.variant == "regions"
    position: Literal["predictor", "projector"] = (
        "predictor" if shape.variant == "predictor" else "projector"
    )
    model = DenseSiamPretraining(
        region_start=0 if regions else 1,
        grid=side,
        sample_at=position,
        hidden_channels=shape.classes,
        backbone=BACKBONES[shape.channels],
    ).to(DEVICE)
    weights = model.weights
    heads = [model.projector, model.predictor, model.dense_projector, model.dense_predictor]
    learning = [*heads, model.region_logits, model.region] if regions else heads
    parameters = [p for head in learning for p in head.parameters()]
    every = torch.ones(batch, device=DEVICE, dtype=torch.bool)

    def make() -> list[Tensor]:
        maps = [features(setting, shape.channels, shape.height, shape.width) for _ in range(2)]
        return [*maps, crop_boxes(batch), crop_boxes(batch), *parameters]

    def ours(first: Tensor, second: Tensor, box1: Tensor, box2: Tensor, *_: Tensor) -> Tensor:
        losses = model.losses(first, second, box1, box2, every)
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def by(kit: Kit, always_regions: bool) -> Callable[..., Tensor]:
        def total(first: Tensor, second: Tensor, box1: Tensor, box2: Tensor, *_: Tensor) -> Tensor:
            views, boxes = [first, second], [box1, box2]

            def points(maps: list[Tensor]) -> list[Tensor]:
                return [kit.sample(m, b, side) for m, b in zip(maps, boxes, strict=True)]

            z = [model.projector(view.mean(dim=(2, 3))) for view in views]
            loss = symmetric(kit.cosine, [model.predictor(t) for t in z], z)
            z = [model.dense_projector(view) for view in views]
            if position == "projector":
                z = points(z)
            p = [model.dense_predictor(t) for t in z]
            if position == "predictor":
                p, z = points(p), points(z)
            loss = loss + weights["dense"] * symmetric(kit.cosine, p, z)
            if regions or always_regions:
                logits = [model.region_logits(t) for t in z]
                weight = weights["region"] if regions else 0.0
                loss = loss + weight * region_loss(kit, model.region, points(views), logits)
            return loss

        return total

    pixels = batch * shape.height * shape.width
    map_bytes = pixels * shape.channels * setting.itemsize
    chains = [nn.Sequential(*heads[2:])]
    return Problem(
        op="pretraining",
        shape=f"{batch}x{shape.channels}x{shape.height}x{shape.width}, K = {side}",
        make=make,
        ours=ours,
        eager=by(LIBRARY, always_regions=False),
        release=by(RELEASE, always_regions=True),
        comparable=lambda inputs: [
            *inputs[:2],
            whole_boxes(batch),
            whole_boxes(batch),
            *inputs[4:],
        ],
        parts={"products": products_alone(chains, views_at_once=True)},
        differentiable=(0, 1, *range(4, 4 + len(parameters))),
        forward_bytes=2 * map_bytes,
        backward_bytes=2 * map_bytes,
        products=operations(chains, pixels),
        module=model,
    )
