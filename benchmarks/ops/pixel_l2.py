"""pixel_l2 against normalize and a difference."""

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops._pixel_loss import call_pixel_loss, pixel_loss_kernels, pixel_loss_problem
from benchmarks.problem import MEMORY_BOUND, KernelNames, Make, Problem, Setting, Shape
from densesiam.ops.pixel_l2 import pixel_l2

SHAPES = (Shape("128", 128, 80, 80), Shape("small", 27, 14, 14), Shape("odd", 127, 79, 83))
SCALED = SHAPES[0]
GPU_GOAL = MEMORY_BOUND


def _eager(p: Tensor, z: Tensor) -> Tensor:
    return (F.normalize(p) - F.normalize(z.detach())).square().sum(1).mean()


def problem(shape: Shape, setting: Setting) -> Problem:
    """Inputs, baseline and mandatory bytes."""
    return pixel_loss_problem("pixel_l2", shape, setting, ours=pixel_l2, eager=_eager)


def cuda_kernels(shape: Shape, names: KernelNames) -> list[str]:
    """How the names of its kernels begin."""
    return pixel_loss_kernels("L2", names)


def triton_kernels(op: Any, make: Make, channels_last: bool) -> Iterator[str]:
    """Call every kernel of the Triton module, on tensors without memory."""
    call_pixel_loss(op, "pixel_l2", make, 128)
    yield "l2"
