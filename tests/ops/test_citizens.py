"""What PyTorch's own machinery does with an operation, and what is asked of one by mistake.

Forward mode and torch.func, fake tensors and tracing, meta tensors, wrong calls of every kind.
"""

import re
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from densesiam import ops
from densesiam.ops import _backends, _operations
from tests.tolerance import assert_close

F = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
T = torch.randn(F.shape, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.9, 0.0, 0.3, 1.0]])
LABELS = torch.randint(3, (2, 6, 7), generator=torch.Generator().manual_seed(0))
CALLS = {
    "overlap_sample": lambda x, boxes, labels: ops.overlap_sample(x, boxes, 3),
    "pixel_similarity": lambda x, boxes, labels: ops.pixel_similarity(x, x * 2),
    "overlap_similarity": lambda x, boxes, labels: ops.overlap_similarity(
        x, x * 2, boxes, boxes, 3
    ),
    "region_pool": lambda x, boxes, labels: ops.region_pool(x, x),
    "pseudo_label_loss": lambda x, boxes, labels: ops.pseudo_label_loss(x, rebalance="inverse"),
    "label_map": lambda x, boxes, labels: ops.label_map(x, 9),
    "roi_align": lambda x, boxes, labels: ops.roi_align(x, boxes.split(1), 3, 7.0),
    "confusion_matrix": lambda x, boxes, labels: ops.confusion_matrix(labels, labels, 3, 3, 255),
}
DIFFERENTIABLE = [name for name, op in _operations.OPERATIONS.items() if op.backward is not None]
every_call = pytest.mark.parametrize("name", CALLS)
every_derivative = pytest.mark.parametrize("name", DIFFERENTIABLE)


@pytest.fixture(autouse=True, params=["reference", "auto"])
def backend(request):
    with ops.use_backend(request.param):
        yield request.param


def test_no_operation_is_forgotten():
    assert set(CALLS) == set(_operations.OPERATIONS)


def jvp(call):
    return torch.func.jvp(call, (F,), (T,))[1]


def dual(call):
    with forward_ad.dual_level():
        result = call(forward_ad.make_dual(F, T))
        return forward_ad.unpack_dual(result).tangent


def compiled_jvp(call):
    torch._dynamo.reset()
    return torch.compile(jvp, fullgraph=True, backend="aot_eager")(call)


def grad(call):
    return torch.func.grad(lambda x: call(x).sum())(F)


@every_derivative
@pytest.mark.parametrize("derive", [jvp, dual, compiled_jvp, grad])
def test_other_derivatives_are_right_or_refused(name, derive, backend):
    if backend == "reference" and derive is compiled_jvp:
        pytest.skip("the reference is plain PyTorch, which refuses or derives by itself")

    def call(x):
        return CALLS[name](x, BOXES, LABELS)

    if backend == "reference":
        derived = derive(call)
        assert derived is not None
        assert derived.any() or name == "overlap_similarity"
        return
    refusal = f"{name}: it has no forward-mode derivative, .* use densesiam.reference.{name}"
    with pytest.raises(RuntimeError, match=refusal):
        derive(call)


@every_call
@pytest.mark.filterwarnings("ignore:.*kernels do not run on cuda")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors(name, device):
    expected = CALLS[name](F, BOXES, LABELS)
    with FakeTensorMode() as mode:
        result = CALLS[name](*(mode.from_tensor(t).to(device) for t in (F, BOXES, LABELS)))
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert result.device.type == device


@every_call
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(name, mode):
    arguments = F, BOXES, LABELS
    graph = make_fx(CALLS[name], tracing_mode=mode)(*arguments)
    assert torch.equal(graph(*arguments), CALLS[name](*arguments))


@every_call
def test_meta_tensors(name):
    expected = CALLS[name](F, BOXES, LABELS)
    result = CALLS[name](*(t.to("meta") for t in (F, BOXES, LABELS)))
    assert result.is_meta
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


@every_call
def test_vmap(name, backend):
    if (name, backend) == ("confusion_matrix", "reference"):
        pytest.skip("its check of the labels has no batching rule")
    stacked = [torch.stack([t, t.flip(0)]) for t in (F, BOXES, LABELS)]
    results = torch.func.vmap(CALLS[name])(*stacked)
    for i, result in enumerate(results):
        # Sums of 84 terms at most, of products of normal numbers, in another order.
        assert_close(result, CALLS[name](*(t[i] for t in stacked)), terms=84, rms=2)


@every_derivative
def test_gradients_pass_through_vmap(name):
    stacked = [torch.stack([t, t.flip(0)]) for t in (F, BOXES, LABELS)]
    leaf = stacked[0].requires_grad_()
    (grads,) = torch.autograd.grad(torch.func.vmap(CALLS[name])(*stacked).sum(), leaf)
    for i, grad in enumerate(grads):
        (expected,) = torch.autograd.grad(CALLS[name](*(t[i] for t in stacked)).sum(), leaf)
        assert_close(grad, expected[i], terms=84, rms=2)  # as above


@pytest.fixture
def short_calls(monkeypatch):
    """Names of the operators that were called without the dispatcher's Autograd key."""
    names = []

    def recording(name, call):
        return lambda *args: names.append(name) or call(*args)

    for (namespace, name), call in _operations._under_autograd.items():
        monkeypatch.setitem(_operations._under_autograd, (namespace, name), recording(name, call))
    return names


def has_short_way(name, backend):
    return name in DIFFERENTIABLE and backend != "reference" and _backends.kernels("cpu")


class Passing(TorchFunctionMode):
    """Sees every call of a function, and passes it on."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class PassingOn(TorchDispatchMode):
    """Sees every call of an operator, and passes it on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


def result_and_gradients(name):
    leaf = F.detach().requires_grad_()
    result = CALLS[name](leaf, BOXES, LABELS)
    if name not in DIFFERENTIABLE:
        return [result]
    return [result, *torch.autograd.grad(result, leaf, cotangent(result))]


def cotangent(result):
    return torch.linspace(-1, 2, result.numel()).view(result.shape)


@every_call
def test_the_short_way_and_the_dispatchers_give_the_same_bits(
    name, backend, short_calls, monkeypatch
):
    short = result_and_gradients(name)
    expected = list(_operations.OPERATIONS[name].operators) if has_short_way(name, backend) else []
    assert short_calls == expected
    monkeypatch.setattr(_operations, "_under_autograd", {})
    registered = result_and_gradients(name)
    assert short_calls == expected
    assert all(torch.equal(a, b) for a, b in zip(short, registered, strict=True))


@every_derivative
@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda c: c.__name__
)
def test_plain_calls_take_the_short_way(name, context, backend, short_calls):
    with context():
        for features in (F, torch.nn.Parameter(F)):
            CALLS[name](features, BOXES, LABELS)
    assert short_calls == ([name] * 2 if has_short_way(name, backend) else [])


@every_derivative
def test_hooks_of_saved_tensors_and_checkpoints_work_on_the_short_way(name, backend, short_calls):
    expected = result_and_gradients(name)
    packed, unpacked = [], []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t) or len(packed) - 1, lambda i: unpacked.append(i) or packed[i]
    ):
        hooked = result_and_gradients(name)
    assert 0 < len(unpacked) <= len(packed)
    assert all(torch.equal(a, b) for a, b in zip(hooked, expected, strict=True))
    short_calls.clear()
    for reentrant in (False, True):
        leaf = F.detach().requires_grad_()
        result = checkpoint(CALLS[name], leaf, BOXES, LABELS, use_reentrant=reentrant)
        result.backward(cotangent(result))
        assert torch.equal(leaf.grad, expected[1])
    if has_short_way(name, backend):
        assert short_calls == [name, name, f"{name}_backward"] * 2


def traced(call):
    make_fx(call, pre_dispatch=True)(F)


def scripted(call):
    torch.jit.trace(call, (F,), check_trace=False)


def under_function_mode(call):
    with Passing():
        call(F)


def under_dispatch_mode(call):
    with PassingOn():
        call(F)


def of_a_subclass(call):
    call(F.as_subclass(Subclass))


@every_derivative
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*")
@pytest.mark.parametrize(
    "see", [traced, scripted, under_function_mode, under_dispatch_mode, of_a_subclass]
)
def test_whoever_looks_finds_the_call_in_the_dispatcher(name, see, short_calls):
    see(lambda x: CALLS[name](x, BOXES, LABELS))
    assert not short_calls


def counted_flops(name, args, needed):
    """Of forward and of backward, by whom torch counts them."""
    leaves = [args[i].detach().requires_grad_() for i in needed]
    for i, leaf in zip(needed, leaves, strict=True):
        args[i] = leaf
    with FlopCounterMode(display=False) as forward:
        result = getattr(ops, name)(*args)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(result, leaves, cotangent(result))
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("needed", [(0, 1), (0,), (1,)])
def test_matrix_products_are_counted_as_the_references(needed):
    features = torch.randn(2, 5, 4, 7)
    counts = []
    for backend in ("reference", "auto"):
        with ops.use_backend(backend):
            counts.append(
                counted_flops("region_pool", [features, F[:, :, :4].contiguous()], needed)
            )
    assert counts[0] == counts[1] == (2 * 2 * 5 * 3 * 28, len(needed) * 2 * 2 * 5 * 3 * 28)


def test_only_what_multiplies_matrices_has_flops():
    """Of the references, roi_align's multiplies by its sparse shares as if they were dense."""
    for name, operation in _operations.OPERATIONS.items():
        with FlopCounterMode(display=False) as counter, ops.use_backend("reference"):
            CALLS[name](F, BOXES, LABELS)
        assert (counter.get_total_flops() > 0) == (bool(operation.flops) or name == "roi_align")


HUGE = torch.empty(1, dtype=torch.float16).expand(1, 2, 2**31 + 8, 1)
WRONG = {
    "a side of 2^31": (
        lambda: ops.label_map(HUGE, 1),
        ValueError,
        "label_map: logits must have sides of at most 2147483647, got shape (1, 2, 2147483656, 1)",
    ),
    "a target's side": (
        lambda: ops.region_pool(F, HUGE),
        ValueError,
        "region_pool: logits must have sides of at most 2147483647",
    ),
    "a size of 2^31": (
        lambda: ops.label_map(F, (3, 2**31)),
        ValueError,
        "label_map: size must be at most 2147483647, got (3, 2147483648)",
    ),
    "a sparse map": (
        lambda: ops.region_pool(F.to_sparse(), F),
        TypeError,
        "region_pool: features must be a dense tensor, got a torch.sparse_coo one",
    ),
    "sparse boxes": (
        lambda: ops.overlap_sample(F, BOXES.to_sparse(), 3),
        TypeError,
        "overlap_sample: boxes must be a dense tensor, got a torch.sparse_coo one",
    ),
    "sparse weights": (
        lambda: ops.pixel_similarity(F, F, weight=torch.ones(2).to_sparse()),
        TypeError,
        "pixel_similarity: weight must be a dense tensor, got a torch.sparse_coo one",
    ),
    "sparse counts": (
        lambda: ops.pseudo_label_loss(F, rebalance="inverse", counts=torch.ones(3).to_sparse()),
        TypeError,
        "pseudo_label_loss: counts must be a dense tensor, got a torch.sparse_coo one",
    ),
    "a weight that is to learn": (
        lambda: ops.pixel_similarity(F, F, weight=torch.ones(2, requires_grad=True)),
        ValueError,
        "pixel_similarity: there is no gradient to weight, and this one requires it; give "
        "weight.detach()",
    ),
    "a label of more than 64 bits": (
        lambda: ops.confusion_matrix(LABELS, LABELS, 3, 3, 2**63),
        ValueError,
        "confusion_matrix: ignore_index must fit in 64 bits, got 9223372036854775808",
    ),
    "a negative label of more than 64 bits": (
        lambda: ops.confusion_matrix(LABELS, LABELS, 3, 3, -(2**63) - 1),
        ValueError,
        "confusion_matrix: ignore_index must fit in 64 bits, got -9223372036854775809",
    ),
    "a ratio of more than 64 bits": (
        lambda: ops.roi_align(F, BOXES.split(1), 3, 1.0, -(2**70)),
        ValueError,
        "roi_align: sampling_ratio must be at least -2147483647, got -1180591620717411303424",
    ),
    "a scale that no float holds": (
        lambda: ops.roi_align(F, BOXES.split(1), 3, 10**400),
        ValueError,
        "roi_align: spatial_scale must be finite, got 1000",
    ),
    "a number that is none": (
        lambda: ops.confusion_matrix(LABELS, LABELS, 3.0, 3, 255),
        TypeError,
        "confusion_matrix: num_predictions must be an int, got float",
    ),
    "a misspelt keyword": (
        lambda: ops.overlap_sample(F, BOXES, sise=3),
        TypeError,
        "overlap_sample() got an unexpected keyword argument 'sise'",
    ),
    "nothing to judge by": (
        lambda: ops.explain("region_pool"),
        ValueError,
        "explain: give region_pool's tensors too; which backend runs depends on them",
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_calls_say_what_is_wrong(wrong):
    call, error, message = wrong
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_wrong_call_by_keyword_in_a_full_graph():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def call(features):
        return ops.overlap_sample(features=features, boxes=BOXES[:1], size=3)

    with pytest.raises(
        ValueError, match=r"overlap_sample: boxes must have shape \(B, 4\) = \(2, 4\)"
    ):
        call(F)


def test_a_failed_allocation_is_torchs_own_error():
    with pytest.raises(RuntimeError) as theirs:
        torch.empty(1, 64, 2**20, 2**20)
    with pytest.raises(type(theirs.value)) as ours:
        ops.overlap_sample(F[:1].repeat(1, 64, 1, 1)[:, :64], BOXES[:1], 2**20)
    assert "you tried to allocate 281474976710656 bytes" in str(ours.value)


def test_a_kernels_own_failed_allocation_is_of_torchs_type(backend, monkeypatch):
    if not has_short_way("overlap_sample", backend):
        pytest.skip("there is no kernel")

    def fail(*args):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setitem(_operations._under_autograd, ("densesiam", "overlap_sample"), fail)
    with pytest.raises(RuntimeError, match="overlap_sample: there is not enough memory"):
        ops.overlap_sample(F, BOXES, 3)


def test_a_failed_call_holds_no_tensors():
    features, boxes = F.clone(), BOXES * torch.nan
    alive = weakref.ref(features)
    with pytest.raises(ValueError, match="overlap_sample: boxes must be finite, got") as raised:
        ops.overlap_sample(features, boxes, 3)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    del features, raised
    assert alive() is None
