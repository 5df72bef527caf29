"""What every reference owes its callers, whatever it computes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from densesiam import reference
from densesiam.ops._operations import OPERATIONS
from tests.ops.suite import Maker
from tests.tolerance import assert_close, assert_within, tolerance

from .support import randn

B, C, N, H, W = 2, 3, 4, 4, 5


def arguments(dtype=torch.float64, batch=B, device="cpu"):
    """Every differentiable loss or sampling call, as a function of its differentiable tensors."""
    weight = torch.linspace(0, 1, batch, dtype=dtype, device=device)  # begins with a 0
    make = Maker(dtype, "contiguous", device)
    p, z, logits = (make.features(batch, c, H, W) for c in (C, C, N))
    r = reference
    calls = {}
    for name, operation in OPERATIONS.items():
        if operation.differentiable:
            count = operation.differentiable
            args = operation.example(make, batch, C, H, W)
            calls[name] = on(getattr(r, name), args[count:]), tuple(args[:count])
    # One box an image, on the maps' scale; the first is mirrored.
    rois = torch.tensor([[0, 4.1, 0.3, 1.2, 3.9], [1, -1.5, 1.1, 3.3, 2.7]], dtype=torch.float64)
    rois = rois[:batch].to(device)
    return calls | {
        "roi_align, aligned": (lambda f: r.roi_align(f, rois, (3, 2), aligned=True), (p,)),
        "roi_align, two points": (lambda f: r.roi_align(f, rois, 2, 0.9, 2), (p,)),
        "roi_align, lists": (lambda f: r.roi_align(f, list(rois[:, 1:].split(1)), 2), (p,)),
        "pixel_similarity, cosine": (lambda p: r.pixel_similarity(p, z), (p,)),
        "pixel_similarity, cosine, weighted, none": (
            lambda p: r.pixel_similarity(p, z, weight=weight, reduction="none"),
            (p,),
        ),
        "region_pool, not normalized": (r.region_pool, (p, logits)),
        "pseudo_label_loss, own labels": (r.pseudo_label_loss, (logits,)),
        "pseudo_label_loss, frequency, none": (
            lambda x: r.pseudo_label_loss(x, -logits, "frequency", reduction="none"),
            (logits,),
        ),
        "pseudo_label_loss, own labels, inverse": (
            lambda x: r.pseudo_label_loss(x, rebalance="inverse"),
            (logits,),
        ),
    }


def on(function, rest):
    return lambda *tensors: function(*tensors, *rest)


names = pytest.mark.parametrize("name", arguments())


@names
def test_first_and_second_derivatives(name):
    function, tensors = arguments()[name]
    tensors = [t.requires_grad_() for t in tensors]
    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@names
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_result_type(name, dtype):
    function, tensors = arguments(dtype)[name]
    at_least_single = torch.float64 if dtype == torch.float64 else torch.float32
    expected = dtype if OPERATIONS[name.split(",")[0]].keeps_type else at_least_single
    assert function(*tensors).dtype == expected


@pytest.mark.parametrize(
    # The others hold a second tensor that would be rounded too: the op suite has them.
    "name",
    ["overlap_sample", *(n for n in arguments() if "region_pool" in n or "own labels" in n)],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_differ_from_double_by_rounding_only(name, dtype):
    function, halves = arguments(dtype)[name]
    exact_function, _ = arguments()[name]
    halves = [t.requires_grad_() for t in halves]
    exacts = [t.detach().double().requires_grad_() for t in halves]
    result, exact = function(*halves), exact_function(*exacts)
    # The result is rounded once if it is of a half type, else it is float32's.
    inner = tolerance(H * W, 4, torch.float32)  # sums over pixels of numbers below 4
    assert_within(result, exact, tolerance(1, exact, result.dtype) + inner)
    upstream = randn(*exact.shape, seed=9)
    gradients = torch.autograd.grad(result, halves, upstream.to(result.dtype))
    exact_gradients = torch.autograd.grad(exact, exacts, upstream.to(result.dtype).double())
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert gradient.dtype == dtype
        assert_within(gradient, exact_gradient, tolerance(1, exact_gradient, dtype) + inner)


@names
def test_empty_batch(name):
    function, tensors = arguments(batch=0)[name]
    tensors = [t.requires_grad_() for t in tensors]
    result = function(*tensors)
    if result.ndim == 0:
        assert result == 0
    else:
        assert result.shape[0] == 0
    for gradient, tensor in zip(torch.autograd.grad(result.sum(), tensors), tensors, strict=True):
        assert gradient.shape == tensor.shape


@names
def test_traced_as_one_graph(name):
    function, tensors = arguments(torch.float32)[name]
    tensors = [t.requires_grad_() for t in tensors]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager_result, result = function(*tensors), compiled(*tensors)
    # The same kernels in the same order: the same bits.
    assert torch.equal(result, eager_result)
    for gradient, eager_gradient in zip(
        torch.autograd.grad(result.sum(), tensors),
        torch.autograd.grad(eager_result.sum(), tensors),
        strict=True,
    ):
        assert_close(gradient, eager_gradient, terms=H * W, rms=4)


class Indexing(TorchDispatchMode):
    """Indices lie where what they index does: fake tensors would let others pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put):
            for index in args[1]:
                assert index is None or index.device == args[0].device
        return func(*args, **(kwargs or {}))


@names
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_never_waits_for_values(name, device):
    # A fake tensor has no values: reading one, as a host synchronisation would, raises. So does
    # mixing devices.
    with FakeTensorMode():
        function, tensors = arguments(torch.float32, device=device)[name]
        tensors = [t.requires_grad_() for t in tensors]
        with Indexing():
            result = function(*tensors)
        assert result.device.type == device
        if device == "cpu":  # autograd insists on a real device
            torch.autograd.grad(result.sum(), tensors)


def test_evaluation_never_waits_for_values():
    with FakeTensorMode():
        logits = torch.empty(2, 5, 4, 4, device="cuda")
        prediction = reference.label_map(logits, 8)
        matrix = reference.confusion_matrix(prediction, prediction, 5, 4, 255)
    assert prediction.device.type == matrix.device.type == "cuda"
    assert prediction.shape == (2, 8, 8)
    assert matrix.shape == (4, 5)


@names
def test_autocast_changes_nothing(name):
    function, tensors = arguments(torch.float32)[name]
    expected = function(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(*tensors), expected)
