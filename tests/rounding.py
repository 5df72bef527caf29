"""What rounding does to a program: which errors reach each element of its results.

The program runs in float64, and every step is changed by a little of its own size, up or down at
random, as rounding to a coarser type changes it. How far a result moves is the root of the sum of
squares of what all these changes make of it: `sqrt(terms) * rms` of `tolerance`, for each element
apart. Nothing of that depends on the machine. (In numerical analysis: Monte Carlo arithmetic.)

The same view of a program tells whether a tolerance finds a term that is missing: `Without` leaves
one out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from tests.tolerance import running_rms, tolerance

aten = torch.ops.aten

STEP = 2.0**-40  # far above float64's own rounding, and so small that effects add up
SAMPLES = 16

Program = Callable[[], Sequence[Tensor]]
"""Computes results and gradients from float64 inputs, the same ones each time."""


def deviations(
    program: Program, step: float = 1.0, half_step: float = 0.0, cancels: bool = False
) -> list[Tensor]:
    """How far each element of the results moves when steps are changed by their own size.

    Args:
        program: what is run.
        step: relative size of the change of every step.
        half_step: the same of those values alone that may be rounded to the inputs' type on the
            way: operands of matrix products, and what `may_round` names.
        cancels: change quotients and the like that are whole numbers too: where p / |p| is 1,
            another program need not get 1. (Sums and products may be pixels' coordinates.)
    """
    exact = program()
    squares = [torch.zeros_like(t) for t in exact]
    for seed in range(SAMPLES):
        with Rounded(seed, STEP * step, STEP * half_step, cancels):
            changed = program()
        for square, a, b in zip(squares, changed, exact, strict=True):
            square += torch.where(b.isfinite(), a - b, 0).square()
    return [(square / SAMPLES).sqrt() / STEP for square in squares]


def error_bound(
    expected: Tensor, steps: Tensor, halves: Tensor, inputs: torch.dtype, output: torch.dtype
) -> Tensor:
    """How far a result may be from the expected one.

    Args:
        expected: the right result.
        steps: its `deviations` for all steps, which are rounded to the type of sums.
        halves: those for what may be rounded to the inputs' type.
        inputs: type of the inputs.
        output: type of the result.
    """
    return (
        tolerance(1, steps, accumulate_dtype(inputs))
        + tolerance(1, halves, inputs)
        + tolerance(1, expected.detach().double().cpu(), output)
    )


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What `dtype` is summed in: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def may_round(values: Tensor) -> Tensor:
    """Marks values that may be rounded to the inputs' type on the way, and their gradients."""
    return _MayRound.apply(values)


class _MayRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        mode = _get_current_dispatch_mode()
        return mode.half(values) if isinstance(mode, Rounded) else values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _MayRound.forward(ctx, gradient)


def _softmax(x: Tensor, dim: int, _: bool) -> Tensor:
    powers = (x - x.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def _log_softmax(x: Tensor, dim: int, _: bool) -> Tensor:
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


# Operators of many steps, in single ones.
STEPS = {
    aten._softmax: _softmax,
    aten._log_softmax: _log_softmax,
    aten._softmax_backward_data: lambda g, y, dim, _: y * (g - (g * y).sum(dim, keepdim=True)),
    aten._log_softmax_backward_data: lambda g, y, dim, _: g - y.exp() * g.sum(dim, keepdim=True),
    aten.lerp: lambda a, b, weight: torch.stack([(1 - weight) * a, weight * b]).sum(0),
}
ROUNDED = {"add", "sub", "rsub", "mul", "div", "pow", "sqrt", "exp", "log", "reciprocal"}
INEXACT = ROUNDED - {"add", "sub", "rsub", "mul"}
PRODUCTS = {"mm", "bmm"}
SUMS = {"sum", "index_put", "scatter_add", *PRODUCTS}


class _Steps(TorchDispatchMode):
    """Runs a program in single steps; a subclass says what becomes of one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operator = func.overloadpacket
        if operator in STEPS:
            with self:
                return STEPS[operator](*args)
        name = operator.__name__.removesuffix("_")  # in place or not
        return self.step(name, lambda *args: func(*args, **(kwargs or {})), list(args))


class Rounded(_Steps):
    """Changes every step by about `step` of its size, and what may be a half type by `half_step`.

    `seed` is that of the directions; `cancels` as in `deviations`.
    """

    def __init__(self, seed: int, step: float, half_step: float, cancels: bool = False) -> None:
        super().__init__()
        self.sizes = step, half_step
        self.cancels = cancels
        self.generator = torch.Generator().manual_seed(seed)

    def half(self, values: Tensor) -> Tensor:
        """The values, as if rounded to a half type."""
        return self._change(values, values, self.sizes[1])

    def step(self, name: str, function: Callable[..., Any], args: list[Any]) -> Any:
        if name in PRODUCTS:
            args = [self.half(a) for a in args]
        result = function(*args)
        if name in SUMS and result.is_floating_point():
            terms = function(*_each(args, lambda t: (t != 0).double())).clamp(min=1)
            running = running_rms(terms, result, function(*_each(args, torch.square)))
            return self._change(result, terms.sqrt() * running, self.sizes[0])
        if name in ROUNDED and result.is_floating_point():
            # Such as whole numbers: there is nothing to round.
            exact = result.float() == result
            if self.cancels and name in INEXACT:
                exact = torch.zeros_like(exact)
            return self._change(result, torch.where(exact, 0, result), self.sizes[0])
        return result

    def _change(self, values: Tensor, size: Tensor, step: float) -> Tensor:
        up = torch.randint(2, size.shape, generator=self.generator, dtype=torch.int8)
        return values.addcmul(size, 2 * up - 1, value=step) if step else values


def _each(args: list[Any], function: Callable[[Tensor], Tensor]) -> list[Any]:
    """The arguments, with `function` of each tensor of floating-point numbers."""
    return [function(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


class Without(_Steps):
    """Leaves something out of one sum: a term of usual size, or all that lies in a row of pixels.

    Args:
        place: which sum, in the order in which the program runs them.
        row: pixels of a row; 0 leaves out a single term.
        rank: 0 for the term of the most usual size or the row of the largest sum, 1 for the next.

    Attributes:
        found: whether the program has that many sums.
    """

    def __init__(self, place: int, row: int = 0, rank: int = 0) -> None:
        super().__init__()
        self.place, self.row, self.rank = place, row, rank
        self.found = False

    def step(self, name: str, function: Callable[..., Any], args: list[Any]) -> Any:
        result = function(*args)
        if name not in SUMS or not result.is_floating_point():
            return result
        self.place -= 1
        if self.place != -1:
            return result
        self.found = True
        if name in PRODUCTS:
            left, right = args
            terms = left.unsqueeze(-1) * right.unsqueeze(-3)
            return self._without(terms, self._inner_rows(terms)).sum(-2)
        at = {"sum": 0, "index_put": 2, "scatter_add": 3}[name]
        over_channels = name == "sum" and args[1:2] == [[1]]
        samples = name == "index_put" or args[at].ndim == 5  # corners of samples, channels last
        channels = 1 if over_channels else -1 if samples else None
        args[at] = self._without(args[at], self._rows(args[at], channels))
        return function(*args)

    def _without(self, terms: Tensor, rows: Tensor) -> Tensor:
        """Zeros in place of a term or a row."""
        if self.row:
            sums = torch.zeros(int(rows.max()) + 1, dtype=terms.dtype)
            order = (
                sums.index_add(0, rows.flatten(), terms.flatten()).abs().argsort(descending=True)
            )
        else:
            rows = torch.arange(terms.numel()).view(terms.shape)
            usual = terms[terms != 0].square().mean().sqrt()
            order = (terms.flatten().abs() - usual).abs().argsort()
        return terms.where(rows != order[min(self.rank, len(order) - 1)], 0)

    def _inner_rows(self, terms: Tensor) -> Tensor:
        """Number of the row that each term of a matrix product (..., I, K, J) is in.

        Where K is that of pixels it is theirs, else one of K.
        """
        K = terms.shape[-2]
        row = self.row if self.row and K % self.row == 0 else 1
        return (torch.arange(K) // row).unsqueeze(1).expand(terms.shape)

    def _rows(self, terms: Tensor, channels: int | None) -> Tensor:
        """Number of the row that each term is in; it has all of the dimension `channels`."""
        index = torch.arange(terms.numel())
        if channels is None or terms.ndim < 3:
            return index.view(terms.shape) // terms.shape[-1:].numel()
        shape = terms.movedim(channels, -1).shape
        return (index.view(shape) // shape[-2:].numel()).movedim(-1, channels)
