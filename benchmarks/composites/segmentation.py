"""Everything after the encoder in unsupervised segmentation."""

from __future__ import annotations

from collections.abc import Callable

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
from densesiam import ops
from densesiam.methods import DenseSiamSegmentation

SHAPES = (
    # The paper's network, with 27 categories and 128 for over-clustering.
    Shape("before RegionSim", 128, 80, 80, size=80, own=True),  # 8 epochs of 10
    Shape("with RegionSim", 128, 80, 80, size=80, variant="regions", own=True),
)
SCALED = None


def problem(shape: Shape, setting: Setting) -> Problem:
    """Reads both views' features and writes their gradients; heads and losses lie between."""
    batch, side, regions = setting.batch, shape.size, shape.variant == "regions"
    start = 0 if regions else 1
    model = DenseSiamSegmentation(num_classes=27, aux_classes=128, region_start=start).to(DEVICE)
    weights = model.weights
    heads = [model.projector, model.predictor, model.aux_projector, model.aux_predictor]
    learning = [*heads, model.region] if regions else heads
    parameters = [p for head in learning for p in head.parameters()]
    every = torch.ones(batch, device=DEVICE)

    def make() -> list[Tensor]:
        maps = [features(setting, shape.channels, shape.height, shape.width) for _ in range(2)]
        return [*maps, crop_boxes(batch), *parameters]

    def ours(first: Tensor, second: Tensor, boxes: Tensor, *_: Tensor) -> Tensor:
        second = ops.overlap_sample(second, boxes, side)
        losses = model.losses(first, second, every)[0]
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def by(kit: Kit, always_regions: bool) -> Callable[..., Tensor]:
        def total(first: Tensor, second: Tensor, boxes: Tensor, *_: Tensor) -> Tensor:
            views = [first, kit.sample(second, boxes, side)]
            z = [model.projector(view) for view in views]
            p = [model.predictor(logits) for logits in z]
            aux_z = [model.aux_projector(view) for view in views]
            aux_p = [model.aux_predictor(logits) for logits in aux_z]
            loss = weights["sim"] * symmetric(kit.cross_entropy, p, z)
            loss = loss + weights["aux"] * symmetric(kit.cross_entropy, aux_p, aux_z)
            labels = kit.pseudo_label_loss(z[0]) + kit.pseudo_label_loss(z[1])
            loss = loss + weights["pseudo_label"] * 0.5 * labels
            if regions or always_regions:
                weight = weights["region"] if regions else 0.0
                loss = loss + weight * region_loss(kit, model.region, views, z)
            return loss

        return total

    pixels = batch * shape.height * shape.width
    map_bytes = pixels * shape.channels * setting.itemsize
    chains = [nn.Sequential(*heads[:2]), nn.Sequential(*heads[2:])]
    return Problem(
        op="segmentation",
        shape=f"{batch}x{shape.channels}x{shape.height}x{shape.width}",
        make=make,
        ours=ours,
        eager=by(LIBRARY, always_regions=False),
        release=by(RELEASE, always_regions=True),
        comparable=lambda inputs: [*inputs[:2], whole_boxes(batch), *inputs[3:]],
        parts={"products": products_alone(chains, views_at_once=False)},
        differentiable=(0, 1, *range(3, 3 + len(parameters))),
        forward_bytes=2 * map_bytes,
        backward_bytes=2 * map_bytes,
        products=operations(chains, pixels),
        # Up to four pixels may be so nearly tied between two labels that they fall either way.
        tolerance=(4 / pixels) ** 0.5,
        module=model,
    )
