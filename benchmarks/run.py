"""One problem, measured: every candidate checked, then timed side by side."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from benchmarks import device
from benchmarks.device import DEVICE
from benchmarks.measure import (
    Call,
    captured,
    clone_of,
    extra_memory,
    inputs_for_cold_caches,
    time_side_by_side,
)
from benchmarks.problem import Part, Problem, Setting
from benchmarks.results import CEILING, Row
from densesiam import ops
from densesiam.ops._backends import kernels, missing

BACKENDS = ("cuda", "triton") if device.gpu else ("cpu",)
"""Ours that can run on this device."""

# Two results in float32, each with its own order of summation, differ by the problem's tolerance.
# Half types add their rounding: of inputs to products, and of outputs.
ROUNDING = {
    torch.float64: 0.0,
    torch.float32: 0.0,
    torch.float16: 2**-8,
    torch.bfloat16: 2**-5,
}

# Of a composite, relative to lengths. In float64 everyone agrees to about 1e-10, whatever the heads
# enlarge. In float32 a rounding can turn an activation over: a normalised value that crosses ReLU's
# 0 moves a gradient by up to a hundredth, and far more where a head normalises two images. What is
# left to find in float32 is gross, such as a lost gradient, which is off by its own length. It is
# looked for with inputs for which the library composition itself, off by a rounding, is near: of
# another draw of roundings the error can be several times the largest of four, and an activation
# may turn over that did not in these. So what is wrong is wrong with three such inputs.
EXACT, NEAR, OWN_ERRORS = 1e-7, 0.01, 8
DRAWS, TRIES, CHANCES = 4, 16, 3

Outcome = tuple[Tensor, tuple[Tensor, ...]]  # result, gradients


@dataclass(frozen=True)
class Case:
    """A problem and its place in the suite.

    Attributes:
        problem: what is measured.
        name: the shape's name.
        setting: batch, type and layout.
        group: the part of the suite.
        x: where it stands on the group's axis.
        threads: of the host; None for all of them.
        compiled: whether to compile the library composition too.
    """

    problem: Problem
    name: str
    setting: Setting
    group: str
    x: float | None = None
    threads: int | None = None
    compiled: bool = False


def measure(case: Case, rounds: int, backends: Sequence[str] = BACKENDS) -> Row:
    """Check every candidate of a case and time those whose results are right."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads or before)
    try:
        return _measure(case, rounds, backends)
    finally:
        torch.set_num_threads(before)


def _measure(case: Case, rounds: int, backends: Sequence[str]) -> Row:
    problem = case.problem
    first = problem.make()
    maps = [t for t in first if not isinstance(t, torch.nn.Parameter)]
    count = inputs_for_cold_caches(sum(t.nbytes for t in maps))
    inputs = [first, *(problem.make() for _ in range(count - 1))]

    functions = _candidates(problem, backends)
    compile_seconds = None
    if case.compiled:
        functions["compile"], compile_seconds = _compiled(problem, inputs[0])

    runner = _Runner(problem, inputs)
    wrong = {}
    for name, function in list(functions.items()):
        if (error := runner.error(name, function)) is not None:
            wrong[name] = error
            del functions[name]

    calls = {name: runner.call(function) for name, function in functions.items()}
    memory = {name: extra_memory(call.once) for name, call in calls.items()}
    parts = {}
    for name, part in (problem.parts or {}).items():
        try:
            parts[name] = _part_call(part, inputs)
        except (RuntimeError, ImportError) as error:
            wrong[name] = _reason(error)
    calls |= parts
    clocks = dict.fromkeys(calls, "events" if device.gpu else "wall")
    from_python = dict(calls) if device.gpu else {}
    uncaptured = {}
    for name, call in from_python.items():
        try:
            calls[name], clocks[name] = captured(call, count), "graph"
        except RuntimeError as error:
            uncaptured[name] = _reason(error)
    ceilings = {CEILING: problem.mandatory_bytes, "forward": problem.forward_bytes}
    clones = {name: clone_of(size) for name, size in ceilings.items()}
    calls |= (
        {name: captured(call, count) for name, call in clones.items()} if device.gpu else clones
    )
    calls |= {f"{name} from Python": call for name, call in from_python.items()}
    times = time_side_by_side(calls, rounds, count)

    forward = {name: times[name][0] for name in functions} if problem.differentiable else {}
    total = {name: times[name][1] for name in functions}
    total[CEILING] = times[CEILING][1]
    if forward:
        forward[CEILING] = times["forward"][1]
    clocks[CEILING] = "graph" if device.gpu else "wall"
    return Row(
        op=problem.op,
        name=case.name,
        shape=problem.shape,
        layout=case.setting.layout,
        dtype=str(case.setting.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        group=case.group,
        rounds=rounds,
        mandatory_bytes=problem.mandatory_bytes,
        x=case.x,
        milliseconds=total,
        forward_milliseconds=forward,
        called_milliseconds={name: times[f"{name} from Python"][1] for name in from_python},
        clocks=clocks,
        uncaptured=uncaptured,
        extra_bytes=memory,
        parts={name: times[name][1] for name in parts},
        compile_seconds=compile_seconds,
        wrong_peers={name: error for name, error in wrong.items() if name not in backends},
        refused={name: error for name, error in wrong.items() if name in backends},
    )


def _candidates(problem: Problem, backends: Sequence[str]) -> dict[str, Callable[..., Tensor]]:
    functions: dict[str, Callable[..., Tensor]] = {"eager": problem.eager}
    if problem.release is not None:
        functions["release"] = problem.release
    functions |= problem.peers or {}
    composite = problem.op not in kernels("reference")
    for backend in backends:
        if missing(backend) is None and (composite or problem.op in kernels(backend)):
            functions[backend] = on_backend(problem.ours, backend)
    return functions


def on_backend(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    """The function with every operation on that backend."""

    def call(*args: Tensor) -> Tensor:
        with ops.use_backend(backend):
            return function(*args)

    return call


def _compiled(problem: Problem, inputs: list[Tensor]) -> tuple[Callable[..., Tensor], float]:
    """The library composition under torch.compile, and the seconds that its first call takes."""
    _wake_compiler()
    torch._dynamo.reset()
    with fresh_cache():  # earlier runs left theirs
        function = torch.compile(problem.formula or problem.eager)
        start = time.perf_counter()
        result = function(*inputs)
        if problem.differentiable:
            leaves = [inputs[i] for i in problem.differentiable]
            torch.autograd.grad(result, leaves, torch.ones_like(result))
        return function, time.perf_counter() - start


@functools.cache
def _wake_compiler() -> None:
    """Let the compiler find its tools: once in a process, in nobody's time."""
    torch.compile(torch.sin)(torch.zeros(8, device=DEVICE))


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """No tf32 in cuDNN's convolutions, its default on a GPU: right results would look wrong."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _reason(error: Exception) -> str:
    return f"cannot: {str(error).splitlines()[0]}"


class _Runner:
    """Calls candidates of a problem and compares them."""

    def __init__(self, problem: Problem, inputs: list[list[Tensor]]) -> None:
        self.problem = problem
        self.inputs = inputs
        result = problem.eager(*self._exact(inputs[0]))
        # Not ones: they make the gradient of a softmax's sum vanish, and rounding errors would be
        # compared with rounding errors. A mean over pixels has gradients of 1e-5, which float16
        # hardly holds: it is scaled, as training in float16 scales its loss.
        scalar = result.ndim == 0
        self.cotangent = torch.full((), 4096.0) if scalar else torch.randn(result.shape)
        self.cotangent = self.cotangent.to(DEVICE)
        self.right: dict[tuple[bool, int], tuple[list[Tensor], Outcome]] = {}

    def call(self, function: Callable[..., Tensor]) -> Call:
        """The candidate, with a cotangent in the type and layout of its own result."""
        cotangent = self._cotangent(function(*self.inputs[0]))
        leaves = self.problem.differentiable
        if not leaves:
            return Call(lambda i: function(*self.inputs[i]))
        return Call(
            lambda i: function(*self.inputs[i]),
            lambda i, result: torch.autograd.grad(
                result, [self.inputs[i][leaf] for leaf in leaves], cotangent
            ),
        )

    def error(self, name: str, function: Callable[..., Tensor]) -> str | None:
        """What is wrong with a candidate; None if its result and gradients are right."""
        try:
            # A compiled function would have to be compiled again for float64, in minutes.
            with float32_convolutions():
                far = self._far(function, name == "release", in_float64=name != "compile")
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return _reason(error)
        return None if far is None else f"wrong by {far:.1e}"

    def _far(
        self, function: Callable[..., Tensor], released: bool, in_float64: bool
    ) -> float | None:
        inputs, expected = self._right(released)
        if self.problem.module is None:
            return difference(self.problem, self._run(function, inputs), expected)
        if in_float64:
            with _doubled(self.problem.module):
                far = composite_error(self._run(function, _doubled_inputs(inputs)), expected)
            if not far <= EXACT:
                return far
        far = math.inf
        for chance in range(CHANCES):
            inputs, expected = self._right(released, chance)
            far = composite_error(self._run(function, inputs), expected)
            if far <= OWN_ERRORS * NEAR:
                return None
        return far

    def _right(self, released: bool, chance: int = 0) -> tuple[list[Tensor], Outcome]:
        """Inputs, and what is right for them; others at each chance.

        Heads normalise by their batch, which can enlarge float32's rounding a hundred thousand
        times. So composites are compared in float64, and in float32 for gross faults only, with
        inputs drawn until the library composition's own errors are small.
        """
        if (released, chance) not in self.right:
            comparable = self.problem.comparable if released else None
            inputs = self.inputs[0] if chance == 0 else self.problem.make()
            inputs = comparable(inputs) if comparable else inputs
            if self.problem.module is None:
                expected = self._run(self.problem.eager, self._exact(inputs))
                self.right[released, chance] = inputs, expected
            else:
                self.right[released, chance] = self._well_conditioned(inputs, comparable)
        return self.right[released, chance]

    def _well_conditioned(
        self, inputs: list[Tensor], comparable: Callable[..., list[Tensor]] | None
    ) -> tuple[list[Tensor], Outcome]:
        problem, module = self.problem, self.problem.module
        assert module is not None
        for _ in range(TRIES):
            with _doubled(module):
                expected = self._run(problem.eager, _doubled_inputs(inputs))
            draws = (self._run(problem.eager, _jittered(inputs)) for _ in range(DRAWS))
            if all(composite_error(draw, expected) <= NEAR for draw in draws):
                return inputs, expected
            inputs = comparable(problem.make()) if comparable else problem.make()
        raise RuntimeError(f"no inputs in {TRIES} for which float32 tells right from wrong")

    def _run(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> Outcome:
        """Result and gradients, without the graph: it would keep autograd's ends of the inputs.

        These belong to the stream that they were made on, and no other could be captured then.
        """
        result = function(*inputs)
        if not self.problem.differentiable:
            return result, ()
        leaves = [inputs[i] for i in self.problem.differentiable]
        gradients = torch.autograd.grad(result, leaves, self._cotangent(result))
        return result.detach(), gradients

    def _exact(self, inputs: list[Tensor]) -> list[Tensor]:
        """Half types as float32: the library composition is then the measure of all others."""
        half = (torch.float16, torch.bfloat16)
        return [
            t.detach().float().requires_grad_(t.requires_grad) if t.dtype in half else t
            for t in inputs
        ]

    def _cotangent(self, result: Tensor) -> Tensor:
        return torch.empty_like(result).copy_(self.cotangent)


def _part_call(part: Part, inputs: list[list[Tensor]]) -> Call:
    """A single library call; its result is a part of ours, so there is nothing to compare."""
    prepared = [part.prepare(*each) for each in inputs]
    if not part.differentiable:
        return Call(lambda i: part.call(*prepared[i]))
    cotangent = torch.randn_like(part.call(*prepared[0]))
    return Call(
        lambda i: part.call(*prepared[i]),
        lambda i, result: torch.autograd.grad(
            result, [prepared[i][leaf] for leaf in part.differentiable], cotangent
        ),
    )


def difference(problem: Problem, actual: Outcome, expected: Outcome) -> float | None:
    """How far an operation's result and gradients are from the right ones; None if near enough.

    Every element counts, relative to the largest.
    """
    for a, b in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
        if not a.is_floating_point():
            error, allowed = float((a != b).float().mean()), problem.ties
        else:
            operands = problem.operands or a.dtype
            allowed = problem.tolerance + max(ROUNDING[a.dtype], ROUNDING[operands])
            a, b = a.detach().double(), b.detach().double()
            error = float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30)
        if not error <= allowed:
            return error
    return None


def composite_error(actual: Outcome, expected: Outcome) -> float:
    """Largest length of the errors of a composite's loss and gradients, relative to their own.

    The loss is measured against 1, the size of its terms, and gradients that rounding is all of (a
    bias before a normalisation) against a thousandth of the longest. NaN where there is one.
    """
    (loss, gradients), (right_loss, right_gradients) = actual, expected
    longest = max(float(g.norm()) for g in right_gradients)
    errors = [float((loss - right_loss).detach().abs()) / max(float(right_loss.detach().abs()), 1)]
    for a, b in zip(gradients, right_gradients, strict=True):
        errors.append(float((a.double() - b).norm()) / max(float(b.norm()), 1e-3 * longest))
    return float(torch.tensor(errors).max())


@contextmanager
def _doubled(module: nn.Module) -> Iterator[None]:
    """The module in float64 for a while; its parameters stay the same objects."""
    module.double()
    try:
        yield
    finally:
        module.float()


def _doubled_inputs(inputs: list[Tensor]) -> list[Tensor]:
    """Inputs in float64, but for parameters, which are the module's own."""
    return [
        t.detach().double().requires_grad_(t.requires_grad)
        if t.is_floating_point() and not isinstance(t, nn.Parameter)
        else t
        for t in inputs
    ]


def _jittered(inputs: list[Tensor]) -> list[Tensor]:
    """Inputs that are off by a rounding."""
    return [
        (t.detach() * (1 + torch.finfo(t.dtype).eps * torch.randn_like(t))).requires_grad_()
        if t.requires_grad and not isinstance(t, nn.Parameter)
        else t
        for t in inputs
    ]
