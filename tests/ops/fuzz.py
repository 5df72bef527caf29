"""Random calls of every operation, compared with the reference in float64.

    python -m tests.ops.fuzz --cases 1000 --seed 0 --backend cpu [operation ...]

The suite's cases are those that somebody thought of. These are drawn: shapes, types, layouts, and
values at the ends of what a type holds. Case i of seed S is case 0 of seed S + i, so the line that
reports a wrong one runs that one again.

What is right:

- The oracle computes in float64, on the samples of the very coordinates that the call has (those
  of float32, where neither features nor boxes are float64): a tap beside the right one is wrong.
- Where the oracle is finite, a result may differ by what rounding explains. Each operation below
  says how far that is, to first order in `unit`: the error of one step relative to its size,
  `tolerance(terms, 1)`.
- Where the oracle is NaN or infinite, the result is the same.
- Where a step of the call is larger than its type holds, or the result is, a result that is not
  finite is right too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from densesiam import ops, reference
from densesiam.ops import _operations
from densesiam.reference._numerics import first_argmax
from densesiam.reference.overlap_sample import whole_map_boxes
from tests.emulator import emulated
from tests.ops.suite import DTYPES, upcast
from tests.rounding import accumulate_dtype
from tests.tolerance import tolerance

SIDES = (1, 1, 2, 3, 5, 7, 8, 11, 13, 16, 17, 31)
CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 27, 31, 32, 64, 65, 128, 131)
MOST = 2500  # elements of a map
HALVES = (torch.float16, torch.bfloat16)


class Draw:
    """What a case is made of, the same for the same operation and seed."""

    def __init__(self, op: str, seed: int):
        self.random = random.Random(f"{op} {seed}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(62))
        self.dtype = self.one_of(*DTYPES)
        self.said: list[str] = [str(self.dtype).removeprefix("torch.")]

    def one_of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def chance(self, percent: float) -> bool:
        return self.random.random() < percent / 100

    def batch(self) -> int:
        return self.one_of(0, *[1, 2, 3] * 6, 5)

    def shape(self, dims: int = 2) -> tuple[int, ...]:
        """(C, *sides) of not too many elements."""
        while True:
            shape = (self.one_of(*CHANNELS), *(self.one_of(*SIDES) for _ in range(dims)))
            if math.prod(shape) <= MOST:
                return shape

    def size(self) -> tuple[int, int]:
        while True:
            size = self.one_of(*SIDES), self.one_of(*SIDES)
            if math.prod(size) <= 300:
                return size

    # -- values ----------------------------------------------------------------------------------

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * unit

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def powers(self, low: float, high: float, *shape: int) -> Tensor:
        """10 to the power of something, of either sign, within what the type holds."""
        if self.dtype == torch.float16:
            low, high = max(low, -7.5), min(high, 4.8)
        values = 10 ** self.uniform(low, high, *shape)
        return values * self.uniform(-1, 1, *shape).sign()

    def values(self, *shape: int) -> Tensor:
        kind = self.random.choices(KINDS, KIND_SHARES)[0]
        self.said.append(kind)
        return {
            "normal": lambda: self.normal(*shape),
            "scaled": lambda: self.normal(*shape) * 10 ** self.random.uniform(-3, 3),
            "whole": lambda: self.normal(*shape).mul(1.5).round(),
            "constant": lambda: torch.full(shape, float(self.powers(-2, 2)), dtype=torch.float64),
            "zero": lambda: torch.zeros(shape, dtype=torch.float64),
            "tiny": lambda: self.powers(-45, -18, *shape),
            "huge": lambda: self.powers(20 if self.dtype != torch.float16 else 3, 38, *shape),
            "great": lambda: self.normal(*shape) * 10 ** self.random.uniform(3, 37),
            "of every size": lambda: self.powers(-40, 38, *shape),
            "special": lambda: self.with_specials(self.normal(*shape)),
            "one class gone": lambda: self.without_a_class(self.normal(*shape)),
        }[kind]()

    def with_specials(self, values: Tensor) -> Tensor:
        """A few infinities, NaN, zeros, and numbers at the ends of the range."""
        type_ = torch.finfo(self.dtype)
        most = min(type_.max, 1e150)  # the oracle, and its bounds, are float64 themselves
        specials = [torch.inf, -torch.inf, torch.nan, 0.0, type_.tiny, type_.tiny * type_.eps]
        chosen = torch.tensor(
            [*specials, most, -most][: self.one_of(2, 3, 6, 8)], dtype=torch.float64
        )
        index = torch.randint(len(chosen), values.shape, generator=self.generator)
        share = self.one_of(0.01, 0.1, 0.5)
        return torch.where(self.uniform(0, 1, *values.shape) < share, chosen[index], values)

    def without_a_class(self, values: Tensor) -> Tensor:
        """A channel masked with -infinity, as absent classes are."""
        if values.dim() > 1 and values.shape[1]:
            values[:, self.random.randrange(values.shape[1])] = -torch.inf
        return values

    # -- tensors ---------------------------------------------------------------------------------

    def features(self, *shape: int) -> Tensor:
        """Values in the case's type, in a layout."""
        layout = self.one_of("contiguous", "contiguous", "channels last", "channels last", *LAYOUTS)
        self.said.append(f"{shape} {layout}")
        if layout == "expanded":
            dim = self.random.randrange(len(shape))
            one = [min(n, 1) if d == dim else n for d, n in enumerate(shape)]
            return self.values(*one).to(self.dtype).expand(shape)
        return arranged(self.values(*shape).to(self.dtype), layout)

    def box_type(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else self.one_of(*DTYPES[:2])

    def edges(self, count: int, side: int) -> tuple[Tensor, Tensor]:
        """(count,) starts and ends of boxes along an axis, in fractions of it."""
        kind = self.one_of(*["inside"] * 4, *EDGES)
        self.said.append(kind)
        a, b = self.uniform(0, 1, 2, count)
        if kind == "inside":
            a, b = a * 1.2 - 0.1, b * 1.2 - 0.1
        elif kind == "zero":
            b = a
        elif kind == "borders":
            a, b = (a * (side + 1)).floor() / side, (b * (side + 1)).floor() / side
        elif kind == "centres":
            a, b = ((a * side).floor() + 0.5) / side, ((b * side).floor() + 0.5) / side
        elif kind == "whole":
            a, b = torch.zeros(count).double(), torch.ones(count).double()
            a, b = (b, a) if self.chance(50) else (a, b)
        elif kind == "outside":
            a, b = a + self.one_of(-3, 1.5), b + self.one_of(-3, 1.5)
        elif kind == "large":
            a, b = (a - 0.5) * 10 ** self.random.uniform(0, 6), b * 10 ** self.random.uniform(0, 6)
        elif kind == "huge":
            a, b = a * 10 ** self.random.uniform(6, 38), -b * 10 ** self.random.uniform(6, 38)
        elif kind == "next to nothing":
            b = a + 10 ** self.random.uniform(-40, -3)
        return a, b

    def boxes(self, batch: int, sides: Sequence[int]) -> Tensor:
        (x1, x2), (y1, y2) = self.edges(batch, sides[1]), self.edges(batch, sides[0])
        return torch.stack([x1, y1, x2, y2], dim=1).to(self.box_type())

    def weights(self, batch: int) -> Tensor | None:
        kind = self.one_of("no weights", "weights", *WEIGHTS)
        self.said.append(kind)
        dtype = self.one_of(torch.float32, torch.float64, self.dtype)
        values = self.uniform(0.1, 1, batch)
        if kind == "no weights":
            return None
        if kind == "bool weights":
            return values < 0.6
        if kind == "weights of 0":
            values *= 0
        elif kind == "tiny weights":
            values *= 10 ** self.random.uniform(-44, -30)
        elif kind == "large weights":
            values *= 10 ** self.random.uniform(4, 38)
        elif kind == "weights of every size":
            values = 10 ** self.uniform(-42, 38, batch)
        if self.chance(40):
            values[:1] = 0
        return values.clamp(max=torch.finfo(dtype).max).to(dtype)

    def cotangent(self, result: Tensor) -> Tensor:
        kind = self.one_of("normal", "normal", "ones", "large", "small", "strided")
        if kind == "ones":
            return torch.ones((), dtype=result.dtype).expand(result.shape)
        scale = {"large": 1e3, "small": 1e-6}.get(kind, 1.0)
        values = (self.normal(*result.shape) * scale).to(result.dtype)
        return arranged(values, "sliced") if kind == "strided" else values


KINDS, KIND_SHARES = zip(
    *{
        "normal": 30,
        "scaled": 8,
        "whole": 8,
        "constant": 6,
        "zero": 3,
        "tiny": 6,
        "huge": 8,
        "great": 6,
        "of every size": 6,
        "special": 13,
        "one class gone": 6,
    }.items(),
    strict=True,
)
LAYOUTS = ("transposed", "sliced", "sliced channels", "expanded", "shifted", "permuted")
EDGES = ("zero", "borders", "centres", "whole", "outside", "large", "huge", "next to nothing")
WEIGHTS = [
    "bool weights",
    "weights of 0",
    "tiny weights",
    "large weights",
    "weights of every size",
]


def arranged(values: Tensor, layout: str) -> Tensor:
    """Those values in a layout; between them lies NaN."""
    if layout == "channels last" and values.dim() > 2:
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed" and values.dim() > 2:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "permuted":
        return values.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "sliced" and values.dim():
        wide = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), torch.nan)
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "sliced channels" and values.dim() > 1:
        batch, channels, *sides = values.shape
        wide = values.new_full((batch, channels + 2, *sides), torch.nan)
        wide[:, 1:-1] = values
        return wide[:, 1:-1]
    if layout == "shifted":  # by one element, off every alignment
        wide = values.new_full((values.numel() + 1,), torch.nan)
        wide[1:] = values.flatten()
        return wide[1:].view(values.shape)
    return values


# -- what is right -------------------------------------------------------------------------------


@dataclass
class Right:
    """One tensor of a call: what it is, and how far from that it may be.

    Attributes:
        value: of the oracle, float64.
        error: how far rounding on the way may take it.
        size: of the largest step on the way; one that its type does not hold may overflow.
    """

    value: Tensor
    error: Tensor
    size: Tensor


@dataclass
class Case:
    """A call of the public function."""

    args: list[Any]
    keywords: dict[str, Any] = field(default_factory=dict)
    differentiable: tuple[int, ...] = (0,)


def unit_of(dtype: torch.dtype, terms: float = 1) -> float:
    """Relative error of a sum of so many terms of inputs of that type."""
    return float(tolerance(terms, 1, accumulate_dtype(dtype)))


def half_error(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Of values that may be rounded to the inputs' type on the way, where that is a half type."""
    return tolerance(1, values, dtype) if dtype in HALVES else torch.zeros_like(values)


def least(dtype: torch.dtype) -> float:
    """The smallest normal number of the type of sums."""
    return torch.finfo(accumulate_dtype(dtype)).tiny


def numbers(values: Tensor) -> Tensor:
    """Zeros in place of infinities and NaN, which have no size."""
    return torch.where(values.isfinite(), values, 0)


def coordinate_type(*tensors: Tensor | None) -> torch.dtype:
    """Of a call with these features and boxes."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


@contextlib.contextmanager
def coordinates_of(coordinates: torch.dtype, weights: torch.dtype) -> Iterator[None]:
    """The reference's samples, in float64 but where a call with these types has them."""
    sampling = importlib.import_module("densesiam.reference.overlap_sample")
    aligning = importlib.import_module("densesiam.reference.roi_align")
    neighbours, shares = sampling._neighbours, aligning._shares

    def of_type(start: Tensor, end: Tensor, *rest: Any) -> Any:
        first, second, weight = neighbours(
            start.to(coordinates), end.to(coordinates), *rest[:-1], weights
        )
        return first, second, weight.double()

    def shares_of_type(start: Tensor, end: Tensor, *rest: Any) -> Any:
        found, points = shares(start.to(coordinates), end.to(coordinates), *rest)
        return found.double(), points.double()

    sampling._neighbours, aligning._shares = of_type, shares_of_type
    try:
        yield
    finally:
        sampling._neighbours, aligning._shares = neighbours, shares


def transposed(linear: Callable[[Tensor], Tensor], like: Tensor, cotangent: Tensor) -> Tensor:
    """The gradient of a linear function."""
    leaf = torch.zeros_like(like, requires_grad=True)
    return torch.autograd.grad(linear(leaf), leaf, cotangent)[0]


def of_linear(
    linear: Callable[[Tensor], Tensor],
    values: Tensor,
    cotangent: Tensor,
    dtype: torch.dtype,
    terms: float,
) -> list[Right]:
    """A sum of inputs times shares that are not negative, and its gradient."""
    unit = unit_of(dtype, terms)
    size = linear(numbers(values).abs())
    back = transposed(linear, values, numbers(cotangent).abs())
    gradient = transposed(linear, values, cotangent)
    floor = least(dtype) * unit
    return [
        Right(linear(values), unit * size + floor * (size > 0), size),
        Right(gradient, unit * back + floor * (back > 0), back),
    ]


@dataclass
class Mass:
    """Softmax over channels, its error, and log sum exp."""

    value: Tensor
    error: Tensor
    log_sum: Tensor


def softmax(x: Tensor, dtype: torch.dtype, error: Tensor | float = 0, kept: bool = False) -> Mass:
    """The softmax of x, whose elements have an error in units.

    kept: whether it is exp(x - log_sum exp) of a log sum exp that is one number of the type of
    sums. That is rounded relative to its own size, so the softmax is to |x|.
    """
    log_sum = x.logsumexp(1, keepdim=True)
    below = (x - log_sum).abs()
    value = x.softmax(1)
    wrong = 1 + below + error + (value * error).sum(1, keepdim=True)
    if kept:
        wrong = wrong + log_sum.abs() + x.abs()
    unit = unit_of(dtype, x.shape[1])
    off = value * (unit * wrong).clamp(max=50).expm1() + least(dtype) * (value > 0)
    return Mass(value, off.clamp(max=1).nan_to_num(0), log_sum)


@dataclass
class Loss:
    """Of every pixel (B, P), with its error; its derivative (B, C, P), with that of it.

    `size` is that of the largest step to the loss. `factor` (B, P) is of the derivative, and may
    be multiplied by what it is given before the rest is.
    """

    value: Tensor
    error: Tensor
    slope: Tensor
    slope_error: Tensor
    size: Tensor
    factor: Tensor | None = None


def cosine(p: Tensor, z: Tensor, dtype: torch.dtype, p_off: Tensor, z_off: Tensor) -> Loss:
    """Minus the cosine, of vectors that are off by as many units of their own."""
    unit = unit_of(dtype, p.shape[1])
    tiny, smallest = least(dtype), least(dtype) * torch.finfo(accumulate_dtype(dtype)).eps
    leaf = p.clone().requires_grad_()
    value = reference.pixel_similarity(leaf, z, "cosine", None, "none")
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    p, z = numbers(p), numbers(z)

    def norm(x: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
        square = x.square().sum(1, keepdim=True)
        relative = 2 + (x.abs() * off).sum(1, keepdim=True) / square.clamp(min=1e-16)
        return square, relative

    (pp, p_wrong), (zz, z_wrong) = norm(p, p_off), norm(z, z_off)
    a = 1 / (pp.clamp(min=1e-16).sqrt() * zz.clamp(min=1e-16).sqrt())
    cos = ((p * z).sum(1, keepdim=True) * a).abs()
    terms = (p_off * z.abs() + p.abs() * z_off + 2 * (p * z).abs()).sum(1, keepdim=True)
    # Products below the smallest number are lost; those of large vectors are scaled down first.
    wide = accumulate_dtype(dtype) == torch.float64
    large, scale = (2.0**768, 2.0**640) if wide else (2.0**96, 2.0**80)
    lost = a * tiny * p.shape[1]
    for square, other in ((pp, z), (zz, p)):
        vanishing = lost * scale + a * smallest * scale * other.abs().sum(1, keepdim=True)
        lost = torch.where(square < large, lost, vanishing)
    wrong = unit * (a * terms + cos * (p_wrong + z_wrong)) + lost
    vague = unit * (p_wrong + z_wrong) > 0.1  # the errors are as large as the vectors
    wrong = torch.where(vague, 2, wrong)
    above = pp >= 1e-16
    b = torch.where(above, cos / pp, 0)
    # Both statistics of a pixel are numbers of the type of sums, which may be too small for it.
    a_wrong = unit * a * (p_wrong + z_wrong) + smallest
    b_wrong = torch.where(above, (wrong + unit * cos * 2 * p_wrong) / pp, 0) + smallest
    slope_wrong = a_wrong * z.abs() + b_wrong * p.abs() + unit * (a * z_off + b * p_off)
    slope_wrong += unit * (a * z.abs() + b * p.abs()) + smallest
    at_clamp = (pp / 1e-16 - 1).abs() < unit * p_wrong
    slope_wrong = torch.where(vague | at_clamp, torch.inf, slope_wrong)
    # Of numbers near the end of float64 the bounds themselves overflow.
    wrong = wrong.squeeze(1).nan_to_num(2).clamp(max=2)
    return Loss(value.detach(), wrong, slope, slope_wrong.nan_to_num(torch.inf), wrong * 0)


def cross_entropy(p: Tensor, z: Tensor, dtype: torch.dtype, p_off: Tensor, z_off: Tensor) -> Loss:
    """Cross-entropy of softmax p toward softmax z; p and z off by as many units."""
    unit = unit_of(dtype, p.shape[1])
    leaf = p.clone().requires_grad_()
    value = reference.pixel_similarity(leaf, z, "cross_entropy", None, "none")
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    p_mass, z_mass = softmax(p, dtype, p_off), softmax(z, dtype, z_off)
    below = (p - p_mass.log_sum).abs()
    each = unit * (2 * below + 1 + p_off + (p_mass.value * p_off).sum(1, keepdim=True))
    wrong = (z_mass.error * below).nan_to_num(0) + (z_mass.value * each).nan_to_num(0)
    p_kept, z_kept = (softmax(x, dtype, e, kept=True) for x, e in ((p, p_off), (z, z_off)))
    slope_wrong = p_kept.error + z_kept.error + unit * (p_kept.value + z_kept.value)
    # The terms are added before they are divided by the sum of the masses, each up to 1.
    size = numbers(below).amax(1) * p.shape[1]
    # A mass that vanishes in its type meets an infinity: 0 times that is NaN.
    vanishes = z_mass.value < least(dtype) / torch.finfo(torch.float32).eps
    size = torch.where((vanishes & p.isinf()).any(1), torch.inf, size)
    return Loss(value.detach(), wrong.sum(1), slope, slope_wrong.nan_to_num(0), size)


LOSSES = {"cosine": cosine, "cross_entropy": cross_entropy}


def reduced(
    loss: Loss,
    weight: Tensor | None,
    reduction: str,
    cotangent: Tensor,
    dtype: torch.dtype,
) -> list[Right]:
    """The weighted losses or their mean, and the gradient to the channels."""
    batch, pixels = loss.value.shape
    tiny = least(dtype)
    w = torch.ones(batch, 1).double() if weight is None else upcast(weight).double()[:, None]
    # The type of sums may be coarser than the weight's.
    w = w.to(accumulate_dtype(dtype)).double()
    counts = w != 0
    value, error, slope, slope_error, size = (
        torch.where(counts.view(-1, *[1] * (t.dim() - 1)), t, 0)
        for t in (loss.value, loss.error, loss.slope, loss.slope_error, loss.size)
    )
    size = torch.maximum(size, numbers(value).abs())
    unit = unit_of(dtype, max(1, batch * pixels))
    if reduction == "none":
        scale = w
        result = w * value
        wrong = w * error + unit * result.abs() + tiny * unit * counts
        step = torch.maximum(size, w.abs() * size)
        upstream = cotangent.reshape(batch, pixels) * w
    else:
        total = float(w.sum() * pixels)
        scale = w / total if total else torch.zeros_like(w)
        result = (scale * value).sum()
        terms = numbers(scale * value).abs().sum()
        wrong = (scale * error).sum() + unit * terms + tiny * unit
        largest = float(w.abs().max()) if batch else 0
        step = terms * total / largest if largest else terms  # before it is divided
        step = torch.maximum(step, size.max() if size.numel() else step)
        # Some kernels add an image's losses up before they weigh them.
        step = torch.maximum(step, numbers(value).abs().sum(1).max() if batch else step)
        upstream = (cotangent * scale).expand(batch, pixels)
    unit = unit_of(dtype)
    upstream = upstream.unsqueeze(1)
    gradient = torch.where(counts[:, :, None], upstream * slope, 0)
    # Of products in any order, some may be below the smallest normal number.
    faint = tiny * unit * (1 + cotangent.abs().amax() if cotangent.numel() else 1)
    lost = 2 * unit * upstream.abs() + faint * counts[:, :, None]
    slope_wrong = upstream.abs() * slope_error
    slope_wrong += lost * (numbers(slope).abs() + slope_error) + faint
    # Steps of the product may be in any order.
    steps = torch.maximum(numbers(upstream).abs(), numbers(gradient).abs())
    if loss.factor is not None:
        steps = torch.maximum(steps, numbers(upstream * loss.factor.unsqueeze(1)).abs())
    return [
        Right(result, wrong, step.expand_as(result)),
        Right(gradient, slope_wrong.nan_to_num(0, posinf=torch.inf), steps.expand_as(gradient)),
    ]


class OverlapSample:
    """Linear in the features; 4 terms a sample, and any number of samples a pixel."""

    @staticmethod
    def make(draw: Draw) -> Case:
        batch, shape = draw.batch(), draw.shape()
        features = draw.features(batch, *shape)
        return Case([features, draw.boxes(batch, shape[1:]), draw.size()])

    @staticmethod
    def right(case: Case, cotangent: Tensor) -> list[Right]:
        features, boxes, size = case.args

        def sample(x: Tensor) -> Tensor:
            return reference.overlap_sample(x, boxes.double(), size)

        with coordinates_of(coordinate_type(features, boxes), accumulate_dtype(features.dtype)):
            return of_linear(sample, upcast(features), cotangent, features.dtype, math.prod(size))


class RoiAlign:
    """Linear in the features; sums of points in cells."""

    @staticmethod
    def make(draw: Draw) -> Case:
        batch, shape = draw.batch(), draw.shape()
        features = draw.features(batch, *shape)
        count = draw.one_of(0, 1, 2, 5) if batch else 0
        _, height, width = shape
        (x1, x2), (y1, y2) = draw.edges(count, width), draw.edges(count, height)
        if draw.chance(60):
            x1, x2, y1, y2 = (
                f(a, b) for a, b in ((x1, x2), (y1, y2)) for f in (torch.minimum, torch.maximum)
            )
        image = draw.uniform(0, 1, count).mul(batch).floor()
        ratio, scale = draw.one_of(-1, 0, 1, 2, 3), draw.one_of(1.0, 1.0, 0.25, 1 / 3)
        if ratio <= 0:  # kernels take at most 2^30 points an axis
            x1, x2, y1, y2 = (t.clamp(-1e5, 1e5) for t in (x1, x2, y1, y2))
        x1, x2, y1, y2 = (t / scale for t in (x1 * width, x2 * width, y1 * height, y2 * height))
        dtype = draw.box_type()
        most = torch.finfo(dtype).max
        boxes = torch.stack([image, x1, y1, x2, y2], dim=1).clamp(-most, most).to(dtype)
        keywords = {
            "spatial_scale": scale,
            "sampling_ratio": ratio,
            "aligned": draw.chance(60),
        }
        return Case([features, boxes, draw.size()], keywords)

    @staticmethod
    def right(case: Case, cotangent: Tensor) -> list[Right]:
        features, boxes, size = case.args
        scale, ratio, aligned = case.keywords.values()
        coordinates = coordinate_type(features, boxes)
        # The edges are pixels' in the type of coordinates; what the oracle adds it takes away.
        offset = 0.5 if aligned else 0.0
        edges = boxes[:, 1:].to(coordinates) * scale - offset
        boxes = torch.cat([boxes[:, :1].double(), edges.double() + offset], dim=1)

        def align(x: Tensor) -> Tensor:
            return reference.roi_align(x, boxes, size, 1.0, ratio, aligned)

        with coordinates_of(coordinates, accumulate_dtype(features.dtype)):
            terms = math.prod(size) * sum(features.shape[2:])
            return of_linear(align, upcast(features), cotangent, features.dtype, terms)


class PixelSimilarity:
    """The losses, of exact vectors."""

    @staticmethod
    def make(draw: Draw) -> Case:
        batch, shape = draw.batch(), draw.shape(draw.one_of(0, 1, 2, 2, 2, 3))
        p, z = draw.features(batch, *shape), draw.features(batch, *shape)
        return Case(
            [p, z, draw.one_of(*LOSSES), draw.weights(batch), draw.one_of("mean", "none")],
        )

    @staticmethod
    def right(case: Case, cotangent: Tensor) -> list[Right]:
        p, z, kind, weight, reduction = case.args
        flat_p, flat_z = (upcast(t).reshape(*t.shape[:2], math.prod(t.shape[2:])) for t in (p, z))
        exact = torch.zeros_like(flat_p)
        loss = LOSSES[kind](*counted(weight, flat_p, flat_z), p.dtype, exact, exact)
        return reduced(loss, weight, reduction, cotangent, p.dtype)


def counted(weight: Tensor | None, *maps: Tensor) -> list[Tensor]:
    """Zeros in place of the images of weight 0."""
    if weight is None:
        return list(maps)
    return [torch.where((weight != 0).view(-1, *[1] * (m.dim() - 1)), m, 0) for m in maps]


class OverlapSimilarity:
    """The losses, of samples that are rounded."""

    @staticmethod
    def make(draw: Draw) -> Case:
        batch, shape = draw.batch(), draw.shape()
        p = draw.features(batch, *shape)
        other = shape[0], *draw.shape()[1:]
        z = draw.features(batch, *(other if math.prod(other) <= MOST else shape))
        boxes = [None if draw.chance(25) else draw.boxes(batch, t.shape[2:]) for t in (p, z)]
        kind, reduction = draw.one_of(*LOSSES), draw.one_of("mean", "none")
        return Case([p, z, *boxes, draw.size(), kind, draw.weights(batch), reduction])

    @staticmethod
    def right(case: Case, cotangent: Tensor) -> list[Right]:
        p, z, boxes_p, boxes_z, size, kind, weight, reduction = case.args
        dtype = p.dtype
        unit = unit_of(dtype, p.shape[1])

        def sampler(like: Tensor, boxes: Tensor | None) -> Callable[[Tensor], Tensor]:
            coordinates = coordinate_type(like, boxes)
            boxes = whole_map_boxes(like) if boxes is None else boxes

            def sample(x: Tensor) -> Tensor:
                with coordinates_of(coordinates, accumulate_dtype(dtype)):
                    return reference.overlap_sample(x, boxes.double(), size)

            return sample

        samples, errors = [], []
        for each, boxes in ((p, boxes_p), (z, boxes_z)):
            (exact,) = counted(weight, upcast(each))
            sample = sampler(each, boxes)
            samples.append(sample(exact).flatten(2))
            sums = sample(numbers(exact).abs()).flatten(2)
            errors.append(sums + 4 * least(dtype))  # below, the spacing shrinks no further
            errors[-1] += half_error(numbers(samples[-1]), dtype) / unit
        loss = LOSSES[kind](*samples, dtype, *errors)
        result, right = reduced(loss, weight, reduction, cotangent, dtype)
        sample = sampler(p, boxes_p)

        def back(x: Tensor) -> Tensor:
            return transposed(sample, upcast(p), x.view(*p.shape[:2], *size))

        steps = right.error + half_error(numbers(right.value), dtype)
        # The composition keeps the gradient of the samples in the inputs' type.
        held = torch.finfo(dtype).max
        too_large = numbers(right.value).abs() + right.error > held
        too_large |= right.size > torch.finfo(accumulate_dtype(dtype)).max / 4
        sizes = back(torch.where(too_large, 1e300, right.size))
        steps = back(steps) + unit_of(dtype, math.prod(size)) * back(numbers(right.value).abs())
        return [result, Right(back(right.value), steps.nan_to_num(0, posinf=torch.inf), sizes)]


class RegionPool:
    """A matrix product with a softmax. Half types may round its operands."""

    @staticmethod
    def make(draw: Draw) -> Case:
        batch, shape = draw.batch(), draw.shape()
        features = draw.features(batch, *shape)
        while True:
            regions = draw.one_of(*CHANNELS)
            if regions * math.prod(shape[1:]) <= MOST:
                break
        logits = draw.features(batch, regions, *shape[1:])
        differentiable = draw.one_of((0, 1), (0, 1), (0,), (1,))
        return Case([features, logits, draw.chance(40)], {}, differentiable)

    @staticmethod
    def right(case: Case, cotangent: Tensor) -> list[Right]:
        features, logits, normalize = case.args
        dtype, pixels = features.dtype, math.prod(features.shape[2:])
        unit = unit_of(dtype, max(1, pixels))
        f, x = (upcast(t).flatten(2) for t in (features, logits))
        leaves = [t.unsqueeze(-1).clone().requires_grad_() for t in (f, x)]
        value = reference.region_pool(*leaves, normalize)
        gradients = torch.autograd.grad(value, leaves, cotangent)
        kept = softmax(x, dtype, kept=True)  # CUDA's forward has it so too
        mask, finite, f = kept.value.nan_to_num(0), f.isfinite(), numbers(f)
        off = kept.error + half_error(mask, dtype)
        f_off = half_error(f, dtype)

        def product(a: Tensor, b: Tensor) -> Tensor:
            return a @ b.mT

        total = product(mask, f.abs())
        wrong = product(off, f.abs()) + product(mask, f_off) + unit * total
        mass = torch.ones(())
        g, g_wrong = numbers(cotangent).abs(), unit_of(dtype) * numbers(cotangent).abs()
        mean, at_clamp = torch.zeros_like(total), torch.tensor(False)
        if normalize:
            mass_off = off.sum(2, keepdim=True)
            mass = mask.sum(2, keepdim=True).clamp(min=1e-6)
            relative = mass_off / mass + unit
            wrong = wrong / mass + total / mass * relative
            g_wrong = g / mass * relative
            total, g = total / mass, g / mass
            mean = total
            at_clamp = (mask.sum(2, keepdim=True) / 1e-6 - 1).abs() < relative
        g_wrong = g_wrong + half_error(g, dtype)
        # Of each pixel and region, the derivative to the mask.
        share = (g * mean).sum(2, keepdim=True)
        slope = g @ f.abs() + share
        kink = torch.where(at_clamp, share, 0)  # the mass has a gradient or none
        slope_wrong = g_wrong @ f.abs() + g @ f_off + unit_of(dtype, f.shape[1]) * slope
        slope_wrong += ((g_wrong * mean) + g * wrong).sum(2, keepdim=True) + kink
        f_wrong = off.mT @ g + mask.mT @ g_wrong + unit * (mask.mT @ g)
        inner = (mask * slope).sum(1, keepdim=True)
        inner_wrong = (off * slope + mask * slope_wrong).sum(1, keepdim=True)
        x_wrong = off * (slope + inner)
        x_wrong += (mask + off) * (slope_wrong + inner_wrong + unit * slope)  # off may be 1
        tiny = least(dtype)
        # A mask that vanishes in its type meets an infinity: 0 times that is NaN.
        faint = 1e-3 if dtype == torch.float16 else least(dtype) / torch.finfo(torch.float32).eps
        lost = product((mask < faint).double(), (~finite).double()) > 0
        size = torch.where(lost, torch.inf, torch.maximum(total * mass, total))
        # The mean is a factor of the gradients.
        most = torch.zeros(())
        if normalize and total.numel():
            most = torch.maximum(total * mass, total / mass).amax((1, 2), keepdim=True)
        rights = [
            Right(value.detach(), wrong + unit * tiny / mass, size),
            Right(gradients[0].squeeze(-1), f_wrong.mT + tiny, (mask.mT @ g).mT + most),
            Right(gradients[1].squeeze(-1), x_wrong + tiny, slope.sum(1, keepdim=True) + most),
        ]
        for each in rights:
            each.error = each.error.nan_to_num(0, posinf=torch.inf)
        return [rights[0], *(rights[1 + i] for i in case.differentiable)]


class PseudoLabelLoss:
    """A loss toward labels that are exact."""

    @staticmethod
    def make(draw: Draw) -> Case:
        batch, shape = draw.batch(), draw.shape(draw.one_of(0, 1, 2, 2, 2, 3))
        logits = draw.features(batch, *shape)
        targets = draw.features(batch, *shape) if draw.chance(60) else None
        counts = None
        if draw.chance(40):
            counts = draw.uniform(0, draw.one_of(1.5, 10, 1e4), shape[0]).floor()
            counts = counts.to(draw.one_of(torch.int64, torch.int32, torch.float32, torch.float64))
        rebalance = draw.one_of("none", "frequency", "inverse")
        reduction = draw.one_of("mean", "none")
        return Case([logits, targets, rebalance, counts, reduction, draw.weights(batch)])

    @staticmethod
    def right(case: Case, cotangent: Tensor) -> list[Right]:
        logits, targets, rebalance, counts, reduction, weight = case.args
        dtype = logits.dtype
        shape = (*logits.shape[:2], math.prod(logits.shape[2:]))
        (x,) = counted(weight, upcast(logits).reshape(shape))
        y = x if targets is None else upcast(targets).reshape(shape)
        counts = None if counts is None else counts.double()
        images = None if weight is None else weight != 0  # each counts whole
        leaf = x.clone().requires_grad_()
        value = reference.pseudo_label_loss(leaf, y, rebalance, counts, "none", images)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        mass, kept = softmax(x, dtype), softmax(x, dtype, kept=True)
        labels = first_argmax(y)
        factor = torch.ones(labels.shape).double()
        if rebalance != "none":
            module = importlib.import_module("densesiam.reference.pseudo_label_loss")
            n = counts
            if n is None:
                of_images = None if images is None else images.view(-1, 1, 1)
                n = module._own_counts(labels, x.shape[1], of_images).double()
            factor = module._class_weights(n, rebalance)[labels]
        unit = unit_of(dtype, x.shape[1])
        below = (x.gather(1, labels.unsqueeze(1)) - mass.log_sum).abs().squeeze(1)
        error = (unit * (1 + 3 * below) * factor).nan_to_num(0)
        size = numbers(below)
        slope_error = kept.error + 3 * unit * (kept.value.nan_to_num(0) + 1)
        slope_error *= factor.unsqueeze(1)
        raw = Loss(value.detach(), error, slope, slope_error, size, factor)
        return reduced(raw, weight, reduction, cotangent, dtype)


class LabelMap:
    """The greatest of samples: of near ties either is right, of exact ones the first."""

    @staticmethod
    def make(draw: Draw) -> Case:
        shape = draw.shape()
        logits = draw.features(draw.batch(), *shape)
        if shape[0] > 1 and draw.chance(20):  # two classes that are one
            index = torch.arange(shape[0])
            index[draw.random.randrange(shape[0])] = draw.random.randrange(shape[0])
            logits = logits[:, index]
        return Case([logits, draw.size()], {}, ())

    @staticmethod
    def judge(case: Case, call: Callable[[], Tensor]) -> str | None:
        logits, size = case.args
        found = call()
        if found.shape != (logits.shape[0], *size) or found.dtype != torch.int64:
            return f"shape {tuple(found.shape)}, {found.dtype}"
        if bool(((found < 0) | (found >= logits.shape[1])).any()):
            return f"label {int(found.min())} or {int(found.max())}"
        exact, boxes = upcast(logits), whole_map_boxes(logits).double()
        with coordinates_of(*[accumulate_dtype(logits.dtype)] * 2):
            samples = reference.overlap_sample(exact, boxes, size)
            sizes = reference.overlap_sample(numbers(exact).abs(), boxes, size)
        expected = first_argmax(samples)
        values = [samples.gather(1, t.unsqueeze(1)).squeeze(1) for t in (found, expected)]
        near = unit_of(logits.dtype) * sizes.amax(1) + least(logits.dtype)
        first = (samples == values[0].unsqueeze(1)).int().argmax(1) == found
        # Samples of one size may be of other pixels, and rounded apart.
        own = logits.dtype if logits.dtype == torch.float64 else torch.float32
        first |= found == reference.label_map(logits.to(own), size)
        right = first & (values[1] - values[0] <= near)
        right |= found == expected
        overflows = sizes.amax(1) > torch.finfo(accumulate_dtype(logits.dtype)).max / 4
        if bool((right | overflows).all()):
            return None
        at = tuple((~right).nonzero()[0].tolist())
        return f"label {int(found[at])} at {at}, expected {int(expected[at])}"


class ConfusionMatrix:
    """Whole numbers, or the same error. CUDA cannot raise: it drops pixels out of range."""

    @staticmethod
    def make(draw: Draw) -> Case:
        shape = (draw.batch(), *(draw.one_of(*SIDES) for _ in range(draw.one_of(0, 1, 2, 2))))
        columns, rows = (draw.one_of(1, 2, 3, 19, 27, 128, 300) for _ in range(2))
        types = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

        def labels(high: int) -> Tensor:
            dtype = draw.one_of(*types)
            high = min(high, torch.iinfo(dtype).max)
            values = draw.uniform(0, high, *shape).floor().to(dtype)
            layout = draw.one_of("contiguous", "transposed", "expanded", "sliced", "permuted")
            draw.said.append(f"{shape} {dtype} {layout}")
            if layout == "expanded":
                return values[:1].expand(shape) if shape[0] else values
            if layout == "sliced":
                wide = values.repeat_interleave(2, -1)
                wide[..., 1::2] = 127
                return wide[..., ::2]
            return arranged(values, layout)

        prediction, label = labels(columns), labels(rows)
        ignored = draw.one_of(255, -1, 0, rows - 1, 2**40)
        fits = torch.iinfo(label.dtype).min <= ignored <= torch.iinfo(label.dtype).max
        if fits and label.numel() and draw.chance(70):
            label = torch.where(draw.uniform(0, 1, *shape) < 0.2, ignored, label).to(label.dtype)
            if draw.chance(50):  # predictions there may be anything
                prediction = torch.where(label == ignored, 101, prediction).to(prediction.dtype)
        if label.numel() and draw.chance(10):
            wrong = draw.one_of(-1, 127, -100)
            chosen = draw.one_of(prediction, label).clone()
            index = tuple(draw.random.randrange(side) for side in shape)
            if wrong >= torch.iinfo(chosen.dtype).min:
                chosen[index] = wrong
            prediction, label = (chosen, label) if draw.chance(50) else (prediction, chosen)
        return Case([prediction, label, columns, rows, ignored], {}, ())

    @staticmethod
    def judge(case: Case, call: Callable[[], Tensor]) -> str | None:
        results: list[Any] = []
        for function in (call, lambda: reference.confusion_matrix(*case.args)):
            try:
                results.append(function())
            except ValueError as error:
                results.append(str(error))
        found, expected = results
        if ops._backends.NAMESPACES["cpu"] != _operations.NAMESPACE:  # the emulator's
            prediction, label, columns, rows, ignored = (
                t.long() if isinstance(t, Tensor) else t for t in case.args
            )
            fits = (prediction >= 0) & (prediction < columns) & (label >= 0) & (label < rows)
            fits &= label != ignored
            cells = (label * columns + prediction)[fits]
            expected = torch.bincount(cells, minlength=rows * columns).view(rows, columns)
        if isinstance(found, Tensor) and isinstance(expected, Tensor):
            different = (found != expected).nonzero().tolist()
            return f"{len(different)} cells, first {different[0]}" if different else None
        return None if str(found) == str(expected) else f"gave {found}, expected {expected}"


GENERATORS: dict[str, Any] = {
    "confusion_matrix": ConfusionMatrix,
    "label_map": LabelMap,
    "overlap_sample": OverlapSample,
    "overlap_similarity": OverlapSimilarity,
    "pixel_similarity": PixelSimilarity,
    "pseudo_label_loss": PseudoLabelLoss,
    "region_pool": RegionPool,
    "roi_align": RoiAlign,
}
"""How each operation is called at random, and what is right there."""

# -- comparing -----------------------------------------------------------------------------------


def difference(found: Tensor, right: Right) -> str | None:
    """What is wrong with one tensor, if anything."""
    expected = right.value.reshape(found.shape)
    error, size = (
        t.broadcast_to(right.value.shape).reshape(found.shape) for t in (right.error, right.size)
    )
    most = torch.finfo(found.dtype).max
    held = torch.finfo(accumulate_dtype(found.dtype)).max / 4
    actual = found.detach().double()
    allowed = error + tolerance(1, numbers(expected), found.dtype)
    allowed += 1e-300  # below, the oracle rounds too
    ok = torch.where(expected.isfinite(), (actual - expected).abs() <= allowed, actual == expected)
    ok |= expected.isnan() & actual.isnan()
    ok |= actual.isinf() & (actual.sign() * expected + allowed > most)
    ok |= ~actual.isfinite() & (size > held)
    if bool(ok.all()):
        return None
    wrong = (~ok).nonzero()
    at = tuple(wrong[0].tolist())
    return (
        f"{len(wrong)} of {ok.numel()} elements, first at {at}: {actual[at]:.9g}, expected "
        f"{expected[at]:.9g} within {allowed[at]:.2e}"
    )


def examine(op: str, seed: int) -> tuple[str, str | None]:
    """Run one case on the backend in use: what it is, and what is wrong with it."""
    draw = Draw(op, seed)
    generator = GENERATORS[op]
    case = generator.make(draw)
    said = ", ".join(draw.said)
    function = getattr(ops, op)
    if hasattr(generator, "judge"):
        return said, generator.judge(case, lambda: function(*case.args, **case.keywords))
    args = list(case.args)
    for i in case.differentiable:
        args[i] = args[i].detach().requires_grad_()
    result = function(*args, **case.keywords)
    cotangent = draw.cotangent(result)
    leaves = [args[i] for i in case.differentiable]
    found = [result, *torch.autograd.grad(result, leaves, cotangent)]
    rights = generator.right(case, upcast(cotangent))
    names = ["result", *(f"gradient of argument {i}" for i in case.differentiable)]
    for name, actual, right, leaf in zip(names, found, rights, [None, *leaves], strict=True):
        if leaf is not None and (actual.shape, actual.dtype) != (leaf.shape, leaf.dtype):
            return said, f"{name}: shape {tuple(actual.shape)}, {actual.dtype}"
        problem = difference(actual, right)
        if problem is not None:
            return said, f"{name}: {problem}"
    return said, None


def fuzz(op: str, cases: int, seed: int, backend: str) -> list[str]:
    """The cases of one operation that are wrong, each a line that runs it again."""
    found = []
    for each in range(seed, seed + cases):
        try:
            said, problem = examine(op, each)
        except Exception as error:  # whatever a call of the right form raises is wrong
            said, problem = "", f"{type(error).__name__}: {error}"
        if problem is not None:
            found.append(
                f"python -m tests.ops.fuzz --cases 1 --seed {each} --backend {backend} {op}"
                f"  # {problem} ({said})"
            )
    return found


@contextlib.contextmanager
def running_on(backend: str) -> Iterator[None]:
    """That backend, or the emulated CUDA kernels."""
    with emulated() if backend == "emulator" else ops.use_backend(backend):
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ops.fuzz", description=__doc__.split("\n")[0]
    )
    parser.add_argument("operations", nargs="*", metavar="operation", help="by default all")
    parser.add_argument("--cases", type=int, default=1000, help="of each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="cpu", help="cpu, triton, reference or emulator")
    given = parser.parse_args(arguments)
    wrong = 0
    for op in given.operations or _operations.OPERATIONS:
        start = time.process_time()
        with running_on(given.backend):
            if op not in ops._backends.kernels(
                "cpu" if given.backend == "emulator" else given.backend
            ):
                print(f"{op}: {given.backend} has no kernel for it")
                continue
            lines = fuzz(op, given.cases, given.seed, given.backend)
        for line in lines:
            print(line)
        wrong += len(lines)
        seconds = time.process_time() - start
        print(f"{op}: {given.cases} cases, {len(lines)} wrong, {seconds:.1f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
