"""The shared op suite: what every operation must do on every backend, type and layout.

A test file subclasses `OpSuite`, states its cases and errors, and adds what is special to the op:

    class TestOverlapSample(OpSuite):
        op = "overlap_sample"
        CASES = {"grid": Case(make, differentiable=(0,)), ...}
        ERRORS = {"boxes of two columns": Error(make_bad, ValueError, "must have shape"), ...}

The oracle is `densesiam.reference` in float64 on the very same (rounded) inputs. How far a result
may be from it follows from the oracle's own steps, element by element: see `tests/rounding.py`.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from densesiam import ops, reference
from densesiam.ops import _backends, _checks, _operations, _pixel_loss
from tests.rounding import Without, accumulate_dtype, deviations, error_bound
from tests.tolerance import assert_within

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last"]


class Maker:
    """Makes a case's tensors in one type, layout and device, the same ones for the same seed."""

    def __init__(self, dtype: torch.dtype, layout: str, device: torch.device | str, seed: int = 0):
        self.dtype, self.layout, self.device = dtype, layout, device
        self.generator = torch.Generator().manual_seed(seed)

    def features(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers (B, C, ...)."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        return self.arranged(values.to(self.dtype))

    def arranged(self, values: Tensor) -> Tensor:
        """Those values on the device, in the layout."""
        values = values.to(self.device)
        if self.layout == "channels_last" and values.dim() > 2:
            return values.movedim(1, -1).contiguous().movedim(-1, 1)
        return values

    def boxes(self, batch: int, low: float = -0.1, high: float = 1.1) -> Tensor:
        """Boxes of any direction, reaching a little over the border."""
        unit = torch.rand(batch, 4, generator=self.generator, dtype=torch.float64)
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return (low + (high - low) * unit).to(dtype).to(self.device)

    def weights(self, batch: int) -> Tensor:
        """Positive weights, the second image's 0."""
        values = torch.rand(batch, generator=self.generator) + 0.1
        values[1:2] = 0
        return values.to(self.device)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Uniform integers in [0, high)."""
        return torch.randint(high, shape, generator=self.generator).to(dtype).to(self.device)


@dataclass(frozen=True)
class Case:
    """One call: how to make its arguments, and which of them receive gradients.

    `cancels`: the result or a gradient is zero but for rounding, wherever the terms of it cancel,
    as the cosine's of one channel do. What rounding leaves is as large as the terms.
    """

    make: Callable[[Maker], list[Any]]
    differentiable: tuple[int, ...] = (0,)
    keywords: dict[str, Any] = field(default_factory=dict)
    cancels: bool = False


@dataclass(frozen=True)
class Error:
    """One wrong call and the message it must give."""

    make: Callable[[Maker], list[Any]]
    error: type[Exception]
    message: str
    keywords: dict[str, Any] = field(default_factory=dict)


def upcast(value: Any) -> Any:
    """Tensors, those of a list too, in main memory, and floating-point ones as float64."""
    if isinstance(value, list):
        return [upcast(each) for each in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().cpu()
    return value.cpu() if isinstance(value, Tensor) else value


def devices(values: Any) -> set[str]:
    """Kinds of devices that tensors lie on, in lists and dicts too."""
    return {each.device.type for each in tree_leaves(values) if isinstance(each, Tensor)}


def same_numbers(results: list[Tensor], expected: list[Tensor], steps: Sequence[Any]) -> bool:
    """Whether nothing differs but the last bits of float64.

    Where all terms cancel, these are those of the terms: `steps` are the oracle's deviations. What
    lacks a term may have larger others, by 2^12 at the most (of a vector of one channel, next to
    nothing is left); float32's rounding is 2^29 times as large as float64's.
    """
    last_bits = 2**12 * torch.finfo(torch.float64).eps
    return all(
        ((a - b).abs() <= 1e-14 * b.abs().max() + last_bits * step).all()
        for a, b, step in zip(results, expected, steps, strict=True)
    )


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether channels lie side by side in both, or in neither."""
    last = [not t.is_contiguous() and t.movedim(1, -1).is_contiguous() for t in (a, b)]
    return last[0] == last[1]


_DEVIATIONS: dict[tuple[type, int, bool], tuple[list[Tensor], list[Tensor]]] = {}


class OpSuite:
    """Subclass it once per operation."""

    op: str
    BOXES: tuple[int, ...] = ()  # places of the arguments that are boxes
    CASES: dict[str, Case]
    ERRORS: dict[str, Error]
    # Matrix operands, and what the oracle marks, may be rounded to the inputs' type on the way.
    rounds_in_input_dtype = False

    # -- helpers -------------------------------------------------------------------------------

    def call(self, args: list[Any], keywords: dict[str, Any] | None = None) -> Any:
        return getattr(ops, self.op)(*args, **(keywords or {}))

    def oracle(self, args: list[Any], keywords: dict[str, Any] | None = None) -> Any:
        return getattr(reference, self.op)(*args, **(keywords or {}))

    def compare(self, actual: Tensor, expected: Tensor, bound: Tensor, what: str) -> None:
        assert_within(actual, expected, bound, what)

    def bounds(
        self, case: Case, dtype: torch.dtype, expected: list[Tensor], ones: bool = False
    ) -> list[Tensor]:
        """How far the result and the gradients of inputs of `dtype` may be from the expected.

        Every step is rounded to the type of sums, and what comes out to its own type. `ones`: the
        gradients are those of the result's sum.
        """
        if not expected[0].is_floating_point():
            return [torch.zeros(())]
        keeps_type = _operations.OPERATIONS[self.op].keeps_type
        result = dtype if keeps_type else accumulate_dtype(dtype)
        outputs = [result, *[dtype] * len(case.differentiable)]
        steps, halves = self._deviations(case, ones)
        return [
            error_bound(value, step, half, dtype, output)
            for value, step, half, output in zip(expected, steps, halves, outputs, strict=True)
        ]

    def _deviations(self, case: Case, ones: bool) -> tuple[list[Tensor], list[Tensor]]:
        """In units of epsilon: of all steps, and of what may be rounded to the inputs' type."""
        key = (type(self), id(case), ones)
        if key not in _DEVIATIONS:
            program = self.program(case, ones)
            steps = deviations(program, cancels=case.cancels)
            halves = [torch.zeros_like(step) for step in steps]
            if self.rounds_in_input_dtype:
                halves = deviations(program, step=0, half_step=1, cancels=case.cancels)
            _DEVIATIONS[key] = steps, halves
        return _DEVIATIONS[key]

    def program(self, case: Case, ones: bool = False) -> Callable[[], list[Tensor]]:
        """The oracle's result and gradients, in float64."""
        args = case.make(Maker(torch.float64, "contiguous", "cpu"))
        cotangent = torch.ones(()) if ones else None

        def call() -> list[Tensor]:
            result, grads, _ = self.run(case, args, self.oracle, cotangent)
            return [result.detach(), *grads]

        return call

    def same(self, actual: Tensor, expected: Tensor, bound: Tensor | None) -> None:
        """Equal bits where there is no bound."""
        if bound is None or not actual.is_floating_point():
            assert torch.equal(actual, expected)
        else:
            assert_within(actual, expected, bound)

    def run(
        self, case: Case, args: list[Any], function: Callable[..., Tensor], cotangent: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Result, gradients, and the cotangent used (normal numbers if none is given)."""
        args = list(args)
        leaves = []
        for i in case.differentiable:
            args[i] = args[i].detach().requires_grad_()
            leaves.append(args[i])
        result = function(args, case.keywords)
        if not leaves:
            return result, [], None
        if cotangent is None:
            generator = torch.Generator().manual_seed(7)
            cotangent = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        cotangent = cotangent.to(result.dtype).to(result.device).expand(result.shape)
        return result, list(torch.autograd.grad(result, leaves, cotangent)), cotangent

    # -- devices -------------------------------------------------------------------------------

    def test_a_case_lies_on_its_device_and_its_oracle_in_main_memory(self, case):
        with FakeTensorMode():  # no GPU is needed
            args = case.make(Maker(torch.float32, "contiguous", "cuda"))
            assert devices([args, case.keywords]) == {"cuda"}
            assert devices([upcast(a) for a in args]) == {"cpu"}

    def test_a_wrong_call_is_wrong_in_nothing_but_what_it_says(self, error):
        with FakeTensorMode():
            args = error.make(Maker(torch.float32, "contiguous", "cuda"))
            assert devices([args, error.keywords]) == {"cuda"}

    # -- values --------------------------------------------------------------------------------

    def test_matches_reference(self, case, backend, dtype, layout, device):
        args = case.make(Maker(dtype, layout, device))
        result, grads, cotangent = self.run(case, args, self.call, None)
        exact = [upcast(a) for a in args]
        cotangent = None if cotangent is None else upcast(cotangent)
        expected, expected_grads, _ = self.run(case, exact, self.oracle, cotangent)

        if result.is_floating_point():
            keeps_type = _operations.OPERATIONS[self.op].keeps_type
            assert result.dtype == (dtype if keeps_type else accumulate_dtype(dtype))
            if keeps_type:
                assert same_layout(result, args[0])
        bounds = self.bounds(case, dtype, [expected, *expected_grads])
        self.compare(result, expected, bounds[0], "result")
        for i, grad, wanted_grad, bound in zip(
            case.differentiable, grads, expected_grads, bounds[1:], strict=True
        ):
            assert grad.dtype == args[i].dtype
            if backend != "reference":  # plain PyTorch gives gradients the layout it likes
                assert same_layout(grad, args[i])
            assert_within(grad, wanted_grad, bound, f"gradient of argument {i}")

    def test_what_cancels_is_zero_but_for_rounding(self, case):
        """A case that says so has such a result or gradient, and only such a case has."""
        right = self.program(case)()
        if not right[0].is_floating_point():
            pytest.skip(f"{self.op} gives whole numbers")
        bounds = self.bounds(case, torch.float64, right)
        terms_cancel = any(
            bool(((value.abs() <= bound) & (bound > 0)).any()) and not value.abs().gt(bound).any()
            for value, bound in zip(right, bounds, strict=True)
        )
        assert terms_cancel == case.cancels

    def test_a_missing_term_is_found(self, case):
        """The tolerance is not too wide: in float32 and float64 for one term less in any sum."""
        self.leave_out([torch.float64, torch.float32], case, row=0)

    def test_a_missing_row_is_found(self, case):
        """The same in half types, for a row of pixels less."""
        self.leave_out([torch.float16, torch.bfloat16], case, row=1)

    def leave_out(self, dtypes: list[torch.dtype], case: Case, row: int) -> None:
        program = self.program(case)
        right = program()
        if not right[0].is_floating_point():
            pytest.skip(f"{self.op} gives whole numbers")
        bounds = {dtype: self.bounds(case, dtype, right) for dtype in dtypes}
        steps, _ = self._deviations(case, ones=False) if case.cancels else ([0.0] * len(right), ())
        row *= case.make(Maker(torch.float64, "contiguous", "cpu"))[0].shape[-1]
        for place in itertools.count():
            missed = set()
            # A term has the usual size. Of rows one of the largest will do: where the weights are
            # next to nothing, one can be less than rounding.
            for rank in range(4 if row else 1):
                with Without(place, row, rank) as mode:
                    wrong = program()
                if not mode.found:
                    assert place, "the oracle has no sum"
                    return
                if same_numbers(wrong, right, steps):  # it was multiplied by 0
                    continue
                missed = {dtype for dtype in dtypes if self.passes(wrong, right, bounds[dtype])}
                if not missed:
                    break
            assert not missed, f"sum {place} of the oracle may lack something in {missed}"

    @staticmethod
    def passes(results: list[Tensor], right: list[Tensor], bounds: list[Tensor]) -> bool:
        try:
            for args in zip(results, right, bounds, strict=True):
                assert_within(*args)
        except AssertionError:
            return False
        return True

    def test_strided_inputs_and_gradients(self, case, backend, device):
        args = case.make(Maker(torch.float32, "contiguous", device))

        def sliced(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.dim() < 2 or not t.is_floating_point():
                return t
            wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, device=t.device)
            wide = wide.to(t.dtype)
            wide[..., ::2] = t
            return wide[..., ::2]

        def transposed(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.dim() < 2 or not t.is_floating_point():
                return t
            return t.transpose(-1, -2).contiguous().transpose(-1, -2)

        expected, grads, cotangent = self.run(case, args, self.call, None)
        right = [expected, *grads]
        bounds = self.bounds(case, torch.float32, right)
        for rearrange in (sliced, transposed):
            again, grads_again, _ = self.run(
                case, [rearrange(a) for a in args], self.call, cotangent
            )
            # Three dimensions transposed are channels last: another path, another order of sums.
            # The reference promises no bits at all.
            same_bits = backend != "reference" and rearrange is sliced
            for a, b, bound in zip([again, *grads_again], right, bounds, strict=True):
                self.same(a, b, None if same_bits else bound)
        if not grads:
            return
        ones = torch.ones((), device=device)
        _, grads, _ = self.run(case, args, self.call, ones.expand(expected.shape).clone())
        _, stride_zero, _ = self.run(case, args, self.call, ones.expand(expected.shape))
        bounds = self.bounds(case, torch.float32, [expected, *grads], ones=True)
        for a, b, bound in zip(stride_zero, grads, bounds[1:], strict=True):
            self.same(a, b, None if backend != "reference" else bound)

    def test_empty_batch(self, case, backend, device):
        args = case.make(Maker(torch.float32, "contiguous", device))
        full, _, _ = self.run(case, args, self.call, None)
        batch = args[0].shape[0]
        is_batched = [isinstance(a, Tensor) and a.shape[:1] == (batch,) for a in args]
        empty = [a[:0] if batched else a for a, batched in zip(args, is_batched, strict=True)]
        keywords = {
            k: v[:0] if isinstance(v, Tensor) and v.shape[:1] == (batch,) else v
            for k, v in case.keywords.items()
        }
        case = Case(case.make, case.differentiable, keywords)
        result, grads, _ = self.run(case, empty, self.call, None)
        if result.shape == full.shape:  # a mean, or counts
            assert not result.any()
        else:
            assert result.shape == (0, *full.shape[1:])
        for i, grad in zip(case.differentiable, grads, strict=True):
            assert grad.shape == empty[i].shape

    def test_deterministic(self, case, backend, device):
        args = case.make(Maker(torch.float32, "contiguous", device))
        if backend == "reference":
            pytest.skip("the reference makes no promise of bits")
        first, grads, _ = self.run(case, args, self.call, None)
        for threads in (1, 2, 3, 7) if backend == "cpu" else (1,):  # others know no threads
            torch.set_num_threads(threads)
            again, grads_again, _ = self.run(case, args, self.call, None)
            assert torch.equal(again, first)
            for a, b in zip(grads_again, grads, strict=True):
                assert torch.equal(a, b)

    # -- autograd ------------------------------------------------------------------------------

    def test_gradcheck(self, case, backend, layout, device):
        if not case.differentiable:
            pytest.skip("not differentiable")
        args = case.make(Maker(torch.float64, layout, device))
        leaves = [args[i].detach().requires_grad_() for i in case.differentiable]

        def function(*values: Tensor) -> Tensor:
            filled = list(args)
            for i, value in zip(case.differentiable, values, strict=True):
                filled[i] = value
            return self.call(filled, case.keywords)

        # fast_mode compares one random projection of the Jacobian: enough to find a wrong entry.
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)

    def test_double_backward(self, case, backend, device):
        if not case.differentiable:
            pytest.skip("not differentiable")
        args = case.make(Maker(torch.float64, "contiguous", device))
        leaf = args[case.differentiable[0]].detach().requires_grad_()
        args[case.differentiable[0]] = leaf
        result = self.call(args, case.keywords)
        (grad,) = torch.autograd.grad(result.square().sum(), leaf, create_graph=True)
        if backend == "reference":
            torch.autograd.grad(grad.sum(), leaf)
            return
        with pytest.raises(RuntimeError, match=f"{self.op}.*densesiam.reference"):
            torch.autograd.grad(grad.sum(), leaf)

    def test_no_gradient_where_none_is_needed(self, case, backend, device):
        args = case.make(Maker(torch.float32, "contiguous", device))
        assert not self.call(args, case.keywords).requires_grad
        differentiable = {i for case in self.CASES.values() for i in case.differentiable}
        for i, arg in enumerate(args):
            if i in differentiable or not isinstance(arg, Tensor):
                continue
            if not arg.is_floating_point():
                continue
            args[i] = arg.detach().requires_grad_()
            if i in self.BOXES or arg.dim() == 1:  # boxes, weights, counts
                with pytest.raises(ValueError, match=f"{self.op}: there is no gradient to "):
                    self.call(args, case.keywords)
                args[i] = arg
                continue
            result = self.call(args, case.keywords)
            if result.requires_grad:  # a constant's gradient is None or nothing
                (grad,) = torch.autograd.grad(result.sum(), args[i], allow_unused=True)
                assert grad is None

    # -- PyTorch's own tools: once per backend, not per type ------------------------------------

    def test_opcheck(self, backend, device, monkeypatch):
        if backend == "reference":
            pytest.skip("the reference is plain PyTorch, not a registered operator")
        calls = []

        def recording(namespace: str, name: str, *args: Any) -> Any:
            calls.append((_operations.kernel(namespace, name), args))
            return _operations.run_kernel(namespace, name, *args)

        for module in (importlib.import_module(f"densesiam.ops.{self.op}"), _pixel_loss):
            monkeypatch.setattr(module, "run_kernel", recording, raising=False)
        slow = backend == "triton" and device.type == "cpu"  # interpreted: the harder layout
        for layout in LAYOUTS[-1:] if slow else LAYOUTS:
            case = next(iter(self.CASES.values()))
            args = case.make(Maker(torch.float32, layout, device))
            for i in case.differentiable:
                args[i] = args[i].detach().requires_grad_()
            self.call(args, case.keywords)
        assert calls
        for entry, args in calls:
            leaves = [
                a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
                for a in args
            ]
            torch.library.opcheck(entry.default, tuple(leaves))

    def test_compiles_without_graph_breaks(self, backend, device):
        torch._dynamo.reset()
        case = next(iter(self.CASES.values()))
        args = case.make(Maker(torch.float32, "contiguous", device))
        expected, grads, _ = self.run(case, args, self.call, None)
        compiled = torch.compile(
            lambda args: self.call(args, case.keywords), fullgraph=True, backend="aot_eager"
        )
        result, grads_again, _ = self.run(case, args, lambda args, _: compiled(args), None)
        bounds = self.bounds(case, torch.float32, [expected, *grads])
        self.compare(result, expected, bounds[0], "compiled result")
        for a, b, bound in zip(grads_again, grads, bounds[1:], strict=True):
            assert_within(a, b, bound, "compiled gradient")

    # -- autocast and bad input ----------------------------------------------------------------

    def test_mixed_types_under_autocast_only(self, backend, device):
        case = next(iter(self.CASES.values()))
        args = case.make(Maker(torch.float32, "contiguous", device))
        mixed = [
            i
            for i, a in enumerate(args)
            if i > 0 and isinstance(a, Tensor) and a.dim() > 2 and a.is_floating_point()
        ]
        if not mixed:
            pytest.skip(f"{self.op} takes one feature tensor")
        args[mixed[0]] = args[mixed[0]].bfloat16()
        with pytest.raises(TypeError, match=f"{self.op}: .*one type outside autocast"):
            self.call(args, case.keywords)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            result = self.call(args, case.keywords)
        assert result.dtype == torch.float32
        # The argument was rounded to bfloat16 before the call, and nothing else was.
        args[mixed[0]] = args[mixed[0]].float()
        assert torch.equal(result, self.call(args, case.keywords))

    def test_errors(self, error, backend, device, monkeypatch):
        # On a GPU values are looked at on request: it would have to be waited for.
        monkeypatch.setattr(_checks, "_CHECKED", {"cpu", "cuda"})
        args = error.make(Maker(torch.float32, "contiguous", device))
        with pytest.raises(error.error, match=re.escape(error.message)) as eager:
            self.call(args, error.keywords)
        assert str(eager.value).startswith(f"{self.op}: ")

    def test_errors_compiled(self, error, backend, device):
        if backend != "cpu" and not (backend == "reference" and not _backends.kernels("cpu")):
            pytest.skip("the checks come before the backend: one of them is enough")
        torch._dynamo.reset()
        args = error.make(Maker(torch.float32, "contiguous", device))
        compiled = torch.compile(
            lambda args: self.call(args, error.keywords), fullgraph=True, backend="eager"
        )
        with pytest.raises(error.error, match=re.escape(error.message)):
            compiled(args)
