"""The shared op suite: what every operation must do on every backend, type and layout.

A test file subclasses `OpSuite`, states its cases and errors, and adds what is special to the op:

    class TestOverlapSample(OpSuite):
        op = "overlap_sample"
        CASES = {"grid": Case(make, differentiable=(0,)), ...}
        ERRORS = {"boxes of two columns": Error(make_bad, ValueError, "must have shape"), ...}

The oracle is `densesiam.reference` in float64 on the very same (rounded) inputs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from densesiam import ops, reference
from densesiam.ops import _backends, _checks

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last"]

# Errors are measured against the largest magnitude of the reference. Results are rounded once
# to their own type (half an epsilon); before that, float32 sums of up to a few hundred terms lose a
# few epsilons, which the factor of 8 covers. In float64 the reference rounds as much as what it is
# compared with, and gradients are differences of larger sums: 64 (measured: up to 14). Nothing here
# depends on the backend.
TOLERANCE = {dtype: 8 * torch.finfo(dtype).eps for dtype in DTYPES}
TOLERANCE[torch.float64] *= 8


class Maker:
    """Makes a case's tensors in one type, layout and device, the same ones for the same seed."""

    def __init__(self, dtype: torch.dtype, layout: str, device: torch.device | str, seed: int = 0):
        self.dtype, self.layout, self.device = dtype, layout, device
        self.generator = torch.Generator().manual_seed(seed)

    def features(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers (B, C, ...)."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        values = values.to(self.dtype).to(self.device)
        if self.layout == "channels_last" and len(shape) > 2:
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
    """One call: how to make its arguments, and which of them receive gradients."""

    make: Callable[[Maker], list[Any]]
    differentiable: tuple[int, ...] = (0,)
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Error:
    """One wrong call and the message it must give."""

    make: Callable[[Maker], list[Any]]
    error: type[Exception]
    message: str
    keywords: dict[str, Any] = field(default_factory=dict)


def upcast(value: Any) -> Any:
    """Floating-point tensors as float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().cpu()
    return value.cpu() if isinstance(value, Tensor) else value


def assert_close(
    actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str, scale: float = 0.0
) -> None:
    """Compare within the tolerance of `dtype`, relative to the largest expected magnitude.

    `scale` is the least magnitude to measure against: that of the terms, where they cancel.
    """
    assert actual.shape == expected.shape, what
    actual = actual.detach().double().cpu()
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN in other places"
    if not expected.numel():
        return
    error = (actual - expected).nan_to_num().abs().max().item()
    scale = max(scale, expected.nan_to_num().abs().max().item())
    assert error <= TOLERANCE[dtype] * scale, (
        f"{what}: error {error:.2e} of {scale:.2e}, tolerance {TOLERANCE[dtype]:.1e}"
    )


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether channels lie side by side in both, or in neither."""
    last = [not t.is_contiguous() and t.movedim(1, -1).is_contiguous() for t in (a, b)]
    return last[0] == last[1]


class OpSuite:
    """Subclass it once per operation."""

    op: str
    CASES: dict[str, Case]
    ERRORS: dict[str, Error]
    result_dtype: str = "accumulate"  # or "features": outputs in the features' own type
    rounds_in_input_dtype = False  # intermediate results may be rounded to the inputs' type
    scale = 0.0  # magnitude of the terms of a result, where they may cancel

    # -- helpers -------------------------------------------------------------------------------

    def call(self, args: list[Any], keywords: dict[str, Any] | None = None) -> Any:
        return getattr(ops, self.op)(*args, **(keywords or {}))

    def oracle(self, args: list[Any], keywords: dict[str, Any] | None = None) -> Any:
        return getattr(reference, self.op)(*args, **(keywords or {}))

    def compare(self, actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
        assert_close(actual, expected, dtype, what, self.scale)

    def same(self, actual: Tensor, expected: Tensor, backend: str) -> None:
        """Equal bits; close for the reference, which promises none."""
        if backend == "reference" and actual.is_floating_point():
            assert_close(actual, upcast(expected), actual.dtype, "reference", self.scale)
        else:
            assert torch.equal(actual, expected)

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
        cotangent = cotangent.to(result.dtype).to(result.device)
        return result, list(torch.autograd.grad(result, leaves, cotangent)), cotangent

    # -- values --------------------------------------------------------------------------------

    def test_matches_reference(self, case, backend, dtype, layout, device):
        args = case.make(Maker(dtype, layout, device))
        result, grads, cotangent = self.run(case, args, self.call, None)
        exact = [upcast(a) for a in args]
        cotangent = None if cotangent is None else upcast(cotangent)
        expected, expected_grads, _ = self.run(case, exact, self.oracle, cotangent)

        if result.is_floating_point():
            accumulate = torch.float64 if dtype == torch.float64 else torch.float32
            wanted = dtype if self.result_dtype == "features" else accumulate
            assert result.dtype == wanted
            if self.result_dtype == "features":
                assert same_layout(result, args[0])
        measured_in = dtype if self.rounds_in_input_dtype else result.dtype
        self.compare(result, expected, measured_in, "result")
        for i, grad, wanted_grad in zip(case.differentiable, grads, expected_grads, strict=True):
            assert grad.dtype == args[i].dtype
            if backend != "reference":  # plain PyTorch gives gradients the layout it likes
                assert same_layout(grad, args[i])
            assert_close(grad, wanted_grad, dtype, f"gradient of argument {i}")

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
        for rearrange in (sliced, transposed):
            again, grads_again, _ = self.run(
                case, [rearrange(a) for a in args], self.call, cotangent
            )
            # Three dimensions transposed are channels last: another path, another order of sums.
            promise = backend if rearrange is sliced else "reference"
            self.same(again, expected, promise)
            for a, b in zip(grads_again, grads, strict=True):
                self.same(a, b, promise)
        if not grads:
            return
        ones = torch.ones((), device=device)
        _, grads, _ = self.run(case, args, self.call, ones.expand(expected.shape).clone())
        _, stride_zero, _ = self.run(case, args, self.call, ones.expand(expected.shape))
        for a, b in zip(stride_zero, grads, strict=True):
            self.same(a, b, backend)

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
        for threads in (1, 2, 3, 7):
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
            result = self.call(args, case.keywords)
            if result.requires_grad:  # a constant's gradient is None or nothing
                (grad,) = torch.autograd.grad(result.sum(), args[i], allow_unused=True)
                assert grad is None

    # -- PyTorch's own tools: once per backend, not per type ------------------------------------

    def test_opcheck(self, backend, device, monkeypatch):
        if backend == "reference":
            pytest.skip("the reference is plain PyTorch, not a registered operator")
        calls = []
        module = importlib.import_module(f"densesiam.ops.{self.op}")
        original = module.kernel

        def recording(namespace: str, name: str) -> Any:
            entry = original(namespace, name)

            def call(*args: Any) -> Any:
                calls.append((entry, args))
                return entry(*args)

            return call

        monkeypatch.setattr(module, "kernel", recording)
        for layout in LAYOUTS:
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
        self.compare(result, upcast(expected), torch.float32, "compiled result")
        for a, b in zip(grads_again, grads, strict=True):
            assert_close(a, upcast(b), torch.float32, "compiled gradient")

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
