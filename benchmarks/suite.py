"""What there is to measure, and in which mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType

import torch

from benchmarks import composites, device, ops
from benchmarks.problem import Setting, Shape
from benchmarks.run import Case
from densesiam.ops._operations import OPERATIONS

MODULES: dict[str, ModuleType] = ops.MODULES | composites.MODULES

GROUPS = {
    "own": "the method's own shapes",
    "types": "number types",
    "half": "the method's own shapes in a half type, on a GPU",
    "shapes": "other shapes",
    "threads": "threads",
    "batch": "images a batch",
    "side": "side of the map in pixels",
}
"""The parts of the suite, the most important first; those from ``threads`` on vary one number."""

COMPILED_COMPOSITE = ("segmentation", "before RegionSim")  # a minute each: one may speak for all
COMPOSITE_BATCH = 4  # images at the most on a CPU, where a composite takes seconds

HALF = torch.float16
TYPES = (torch.float64, torch.float16, torch.bfloat16)
INTEGERS = [name for name, op in OPERATIONS.items() if op.integers]
SIDES = (20, 40, 80, 160)


def cases(
    names: Sequence[str],
    groups: Sequence[str],
    batch: int,
    quick: bool = False,
    shapes: Sequence[str] | None = None,
) -> Iterator[Case]:
    """The cases to measure, one after another; each is built when it is asked for.

    Args:
        names: operations and composites.
        groups: parts of the suite.
        batch: images, where a shape does not say less.
        quick: one layout, and nothing compiled.
        shapes: names of shapes to keep; None for all.
    """
    for group in groups:
        for name in names:
            for case in _GROUPS[group](name, batch, quick):
                if shapes is None or case.name in shapes:
                    yield case


def shape_names() -> list[str]:
    """Every shape's name."""
    return sorted({shape.name for module in MODULES.values() for shape in module.SHAPES})


def _own(name: str, batch: int, quick: bool) -> Iterator[Case]:
    composite = name in composites.MODULES
    shapes = [shape for shape in MODULES[name].SHAPES if shape.own]
    if quick and composite:
        shapes = shapes[:1]
    layouts = [False] if quick or name in INTEGERS else [False, True]
    if composite:
        layouts = [True]  # as encoders give features
    for channels_last in layouts:
        for shape in shapes:
            setting = Setting(batch, channels_last=channels_last)
            compiled = not quick and (not composite or (name, shape.name) == COMPILED_COMPOSITE)
            yield _case(name, shape, setting, "own", compiled=compiled)


def _other_shapes(name: str, batch: int, quick: bool) -> Iterator[Case]:
    for shape in MODULES[name].SHAPES:
        if not shape.own:
            yield _case(name, shape, Setting(batch), "shapes")


def _types(name: str, batch: int, quick: bool) -> Iterator[Case]:
    scaled = MODULES[name].SCALED
    if scaled is None or name in INTEGERS:
        return
    for dtype in TYPES:
        yield _case(name, scaled, Setting(batch, dtype), "types")


def _half(name: str, batch: int, quick: bool) -> Iterator[Case]:
    if device.gpu is None or name in INTEGERS or name in composites.MODULES:
        return
    for channels_last in (False, True):
        for shape in (shape for shape in MODULES[name].SHAPES if shape.own):
            yield _case(name, shape, Setting(batch, HALF, channels_last), "half")


def _batches(name: str, batch: int, quick: bool) -> Iterator[Case]:
    if (scaled := MODULES[name].SCALED) is not None:
        for images in (1, 2, 4, 8, 16, 32, 64, 128):
            if images <= batch:
                yield _case(name, scaled, Setting(images), "batch", x=images)


def _sides(name: str, batch: int, quick: bool) -> Iterator[Case]:
    scaled = MODULES[name].SCALED
    if scaled is None:
        return
    for side in SIDES:
        size = round(scaled.size * side / scaled.height) if scaled.size > 14 else scaled.size
        shape = replace(scaled, height=side, width=side, size=size)
        yield _case(name, shape, Setting(max(1, batch // 4)), "side", x=side)


def _threads(name: str, batch: int, quick: bool) -> Iterator[Case]:
    scaled, most = MODULES[name].SCALED, torch.get_num_threads()
    if scaled is None or device.gpu is not None:
        return
    counts = sorted({most, *(2**k for k in range(most.bit_length()) if 2**k < most)})
    for threads in counts:
        yield replace(_case(name, scaled, Setting(batch), "threads", x=threads), threads=threads)


_GROUPS = {
    "own": _own,
    "shapes": _other_shapes,
    "types": _types,
    "half": _half,
    "batch": _batches,
    "side": _sides,
    "threads": _threads,
}


def _case(
    name: str,
    shape: Shape,
    setting: Setting,
    group: str,
    x: float | None = None,
    compiled: bool = False,
) -> Case:
    if shape.batch is not None and x is None:
        setting = replace(setting, batch=min(setting.batch, shape.batch))
    if name in composites.MODULES and device.gpu is None:
        setting = replace(setting, batch=min(setting.batch, COMPOSITE_BATCH))
    problem = MODULES[name].problem(shape, setting)
    return Case(problem, shape.name, setting, group, x, compiled=compiled)
