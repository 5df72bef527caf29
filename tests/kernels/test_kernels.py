"""What the op suite cannot see of the Triton kernels: bounds, block edges, wide offsets, imports.

Interpreted kernels read and write raw memory unchecked, so tensors are given fences here: inputs
lie between NaN, outputs between values that must survive.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from densesiam import ops
from densesiam.ops import _backends, _triton
from densesiam.ops._operations import OPERATIONS
from tests.ops.suite import Maker
from tests.rounding import deviations, error_bound
from tests.tolerance import assert_within

if _backends.missing("triton") is not None or torch.cuda.is_available():
    pytest.skip("runs in Triton's interpreter only", allow_module_level=True)

FENCE = 10_000  # elements on either side
ROOT = Path(__file__).parents[2]


def normal(*shape: int, channels_last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    layout = "channels_last" if channels_last else "contiguous"
    return Maker(dtype, layout, "cpu", seed=sum(shape)).features(*shape)


Call = tuple[Callable[..., Tensor], list[Any], list[Any]]
"""A public function, the maps that it is given, and its other arguments."""


def exemplary(name: str, channels_last: bool) -> Call:
    layout = "channels_last" if channels_last else "contiguous"
    # Odd extents, so that every block has an edge inside it.
    arguments = OPERATIONS[name].example(Maker(torch.float32, layout, "cpu"), 2, 5, 5, 7)
    maps = list(itertools.takewhile(lambda a: isinstance(a, Tensor) and a.dim() == 4, arguments))
    return getattr(ops, name), maps, arguments[len(maps) :]


def of_many_regions(channels_last: bool) -> Call:
    shapes = (1, 133, 5, 7), (1, 131, 5, 7)
    maps = [normal(*shape, channels_last=channels_last) for shape in shapes]
    return ops.region_pool, maps, [True]


SMALL = {name: partial(exemplary, name) for name in sorted(_triton.kernels())}
CALLS: dict[str, Callable[[bool], Call]] = SMALL | {"region_pool of many regions": of_many_regions}


def run(
    function: Callable[..., Tensor],
    features: list[Tensor],
    rest: list[Any],
    backend: str = "triton",
) -> list[Tensor]:
    """The result and the gradients of all features that have one."""
    features = [f.detach().requires_grad_() for f in features]
    with ops.use_backend(backend):
        result = function(*features, *rest)
        if not result.requires_grad:
            return [result]
        cotangent = torch.linspace(-1, 2, result.numel()).view(result.shape).to(result)
        grads = torch.autograd.grad(result, features, cotangent, allow_unused=True)
    return [result.detach(), *(g for g in grads if g is not None)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "channels_last"])
@pytest.mark.parametrize("call", CALLS)
def test_fences_stand(call, channels_last, monkeypatch):
    function, features, rest = CALLS[call](channels_last)
    fences = Fences()
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_empty", lambda *a, **k: fences.new_empty(*a, **k))
        patch.setattr(Tensor, "new_zeros", lambda *a, **k: fences.new_empty(*a, **k).zero_())
        patch.setattr(Tensor, "new_ones", lambda *a, **k: fences.new_empty(*a, **k).fill_(1))
        fenced_rest = [fences.around(r) if isinstance(r, Tensor) else r for r in rest]
        results = run(function, [fences.around(f) for f in features], fenced_rest)
    assert len(fences.whole) > len(features)
    fences.check()
    # A stray read, or an element never written, is NaN.
    for result, wanted in zip(results, run(function, features, rest), strict=True):
        assert torch.equal(result, wanted)


class Fences:
    """Allocates tensors between poison, and tells whether it is still there."""

    def __init__(self) -> None:
        self.whole: list[tuple[Tensor, Tensor]] = []  # memory and what it was filled with
        self.allocate = Tensor.new_empty

    def new_empty(
        self, like: Tensor, *size: Any, dtype: torch.dtype | None = None, **options: Any
    ) -> Tensor:
        if options:  # the interpreter's own
            return self.allocate(like, *size, dtype=dtype, **options)
        shape = torch.Size(size[0] if isinstance(size[0], list | tuple) else size)
        whole = self.allocate(like, [shape.numel() + 2 * FENCE], dtype=dtype or like.dtype)
        poison = torch.nan if whole.is_floating_point() else 123456789
        whole.fill_(poison)
        self.whole.append((whole, torch.full_like(whole[:FENCE], poison)))
        return whole[FENCE:-FENCE].view(shape)

    def around(self, tensor: Tensor) -> Tensor:
        flat = self.new_empty(tensor, tensor.numel())
        return flat.as_strided(tensor.shape, tensor.stride(), FENCE).copy_(tensor)

    def check(self) -> None:
        for whole, poison in self.whole:
            for fence in (whole[:FENCE], whole[-FENCE:]):
                assert torch.equal(fence.view(torch.uint8), poison.view(torch.uint8))


@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_region_pool_of_several_blocks(dtype, channels_last):
    features = normal(1, 133, 5, 7, channels_last=channels_last, dtype=dtype)
    logits = normal(1, 131, 5, 7, channels_last=channels_last, dtype=dtype)
    result, *grads = run(ops.region_pool, [features, logits], [])
    exact = [features.double(), logits.double()]

    def program():
        return run(ops.region_pool, exact, [], backend="reference")

    expected = program()
    # Half types round the mask to half before the product.
    rounding = zip(deviations(program), deviations(program, step=0, half_step=1), strict=True)
    for actual, right, bounds in zip([result, *grads], expected, rounding, strict=True):
        assert_within(actual, right, error_bound(right, *bounds, dtype, actual.dtype))


@pytest.mark.parametrize("call", SMALL)
def test_wide_offsets_change_nothing(call, monkeypatch):
    launch = _triton.load_module("launch")
    function, features, rest = CALLS[call](False)
    expected = run(function, features, rest)
    monkeypatch.setattr(launch, "LARGEST_IMAGE", 0)
    for result, wanted in zip(run(function, features, rest), expected, strict=True):
        assert torch.equal(result, wanted)


def test_triton_is_imported_with_the_first_call():
    code = "import sys, densesiam.ops; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
