"""Weights of images, of the operations that take them: every type, from end to end of its numbers.

A backend's kernels take them as they are: nothing is launched to convert them, nor to bring a
mean's weights to a size at which products and sums stay within the type.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from densesiam import ops, reference
from densesiam.ops import _triton
from densesiam.reference._numerics import relative
from tests.emulator import emulated, traced
from tests.tolerance import assert_close

BOXES = torch.tensor([[0.0, 0.1, 1.0, 0.9]]).repeat(3, 1)
COUNTS = torch.tensor([4.0, 0, 7, 1])
# (implementation, p, z, weight, reduction) -> the loss, of (B, C, H, W) maps.
LOSSES = {
    "cosine": lambda of, p, z, *rest: of.pixel_similarity(p, z, "cosine", *rest),
    "cross-entropy": lambda of, p, z, *rest: of.pixel_similarity(p, z, "cross_entropy", *rest),
    "samples": lambda of, p, z, *rest: of.overlap_similarity(p, z, BOXES, None, 3, "cosine", *rest),
    "labels": lambda of, p, z, w, by: of.pseudo_label_loss(p, z, "none", None, by, w),
    "labels, inverse": lambda of, p, z, w, by: of.pseudo_label_loss(p, z, "inverse", None, by, w),
    "labels, counts": lambda of, p, z, w, by: of.pseudo_label_loss(
        p, None, "frequency", COUNTS.to(p), by, w
    ),
}
ENDS = {  # small and large numbers of a type, that it has room for ten times beyond
    torch.float16: (6e-7, 6e3),
    torch.bfloat16: (1e-38, 3e37),
    torch.float32: (1e-40, 3e37),
    torch.float64: (1e-308, 1e307),
}


def weights():
    """(type, kind, (3,) weights), of which the second is 0."""
    yield torch.bool, "some", torch.tensor([True, False, True])
    for dtype, (small, large) in ENDS.items():
        usual = torch.tensor([0.5, 0, 2], dtype=torch.float64)
        yield dtype, "usual", usual.to(dtype)
        yield dtype, "small", (small * usual).to(dtype)
        yield dtype, "large", (large * usual).to(dtype)
        yield dtype, "small and large", torch.tensor([small, 0, large]).to(dtype)
        yield dtype, "of both signs", torch.tensor([-1, 0, 3]).to(dtype)
        yield dtype, "that cancel", torch.tensor([-2, 0, 2]).to(dtype)
        yield dtype, "none", torch.zeros(3, dtype=dtype)
        yield dtype, "strided", torch.stack([usual, usual + 5], dim=1).to(dtype)[:, 0]


def maps(dtype, side, batch=3):
    generator = torch.Generator().manual_seed(side)
    p, z = (torch.randn(batch, 4, side, side, generator=generator).to(dtype) for _ in range(2))
    return p, z


@pytest.mark.parametrize("side", [1, 7])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("sums", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_every_type_and_size(backend, device, name, sums, reduction, side):
    loss = LOSSES[name]
    p, z = (m.to(device) for m in maps(sums, side))
    if name == "samples":
        p, z = (torch.nn.functional.interpolate(m, scale_factor=2) for m in (p, z))
    every = list(weights())
    # Interpreted, each sampled loss takes half a second.
    taken = every[side % 5 :: 5] if backend == "triton" and name == "samples" else every
    for dtype, kind, weight in taken:
        what = f"{dtype} {kind}"
        # As exact ones in float64, of the values that the type of sums has.
        exact = weight.to(sums).double()
        if reduction == "mean":
            exact = relative(exact)
        if not exact.isfinite().all():
            continue  # the type of sums has no room for them
        wanted_p = p.cpu().double().requires_grad_()
        wanted = loss(reference, wanted_p, z.cpu().double(), exact, reduction)
        (wanted_grad,) = torch.autograd.grad(wanted.sum(), wanted_p)
        leaf = p.clone().requires_grad_()
        found = loss(ops, leaf, z, weight.to(device), reduction)
        (grad,) = torch.autograd.grad(found.sum(), leaf)
        assert found.dtype == sums, what
        # Each of up to 49 losses of at most 10 is a sum of 4 channels; class weights are up to 49.
        size = 10 * 49 * float(exact.abs().max() if reduction == "none" else 1)
        if kind == "of both signs":
            size *= 2  # the weights sum to less than the largest
        where = torch.isfinite(wanted.to(sums))
        assert torch.equal(found.isfinite().cpu(), where), what
        try:
            assert_close(found.cpu()[where], wanted[where], terms=64, rms=size)
            assert_close(grad.cpu(), wanted_grad, terms=64, rms=size)
        except AssertionError as error:
            raise AssertionError(what) from error


@pytest.mark.parametrize("features", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["cross-entropy", "labels", "labels, inverse"])
def test_weights_beside_half_features(backend, device, name, features):
    p, z = maps(features, 5)
    for _, kind, weight in weights():
        exact = relative(weight.to(torch.float32).double())
        if not exact.isfinite().all() or kind in ("that cancel", "none"):
            continue
        wanted_p = p.double().requires_grad_()
        wanted = LOSSES[name](reference, wanted_p, z.double(), exact, "mean")
        leaf = p.to(device).requires_grad_()
        found = LOSSES[name](ops, leaf, z.to(device), weight.to(device), "mean")
        (grad,) = torch.autograd.grad(found, leaf)
        assert (found.dtype, grad.dtype) == (torch.float32, features)
        # 75 losses of up to 10 and of class weights of up to 25, of 4 channels.
        assert_close(found.cpu(), wanted, terms=75 + 4, rms=250)
        assert_close(grad.cpu(), *torch.autograd.grad(wanted, wanted_p), terms=8)


class Launching(TorchDispatchMode):
    """Collects the operators of ATen that do more than make a tensor or look at one."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and not func.is_view and "empty" not in func.name():
            self.called.append(func.name())
        return func(*args, **kwargs or {})


TYPES = [torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_weighted_mean_launches_as_many_kernels_as_one_without_weights(name, dtype):
    forward, backward = {
        "samples": (4, 4),
        "labels, inverse": (3, 1),
        "labels, counts": (3, 1),
    }.get(name, (2, 1))
    p, z = maps(torch.float32, 7)
    p.requires_grad_()
    for weight in (None, torch.tensor([1, 0, 1]).to(dtype)):
        with emulated():
            with Launching() as launching, traced() as launches:
                loss = LOSSES[name](ops, p, z, weight, "mean")
            assert len(launches) == forward
            assert launching.called == []
            with traced() as launches:
                torch.autograd.grad(loss, p)
            assert len(launches) == backward


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("rebalance", "expected", "clears"), [("none", 2, 0), ("inverse", 4, 1)])
def test_so_it_does_in_triton(rebalance, expected, clears, dtype, monkeypatch):
    losses = _triton.load_module("pseudo_label_loss")
    pixels = _triton.load_module("pixel_loss")
    similarity = _triton.load_module("pixel_similarity")
    reduction = _triton.load_module("reduction")
    launch, launched = _triton.load_module("launch").launch, []

    def counting(kernel, *arguments, **constants):
        launched.append(kernel)

    for module in (losses, pixels, reduction):
        assert module.launch is launch
        monkeypatch.setattr(module, "launch", counting)
    p, z = (m.flatten(2) for m in maps(torch.float32, 7))
    for weight in (None, torch.tensor([1, 0, 1]).to(dtype)):
        with Launching() as launching:
            kept = losses.pseudo_label_loss(p, z, rebalance, None, "mean", weight)
        assert (len(launched), len(launching.called)) == (expected, clears)
        launched.clear()
        with Launching() as launching:
            losses.pseudo_label_loss_backward(kept[0], p, "mean", weight, *kept[1:])
            _, statistics = similarity.pixel_similarity(p, z, "cosine", weight, "mean")
            similarity.pixel_similarity_backward(
                kept[0], p, z, "cosine", weight, "mean", statistics
            )
        assert (len(launched), launching.called) == (1 + 2 + 1, [])
        launched.clear()


# More than are weighed at once; more sums than threads, of which each image has one or three.
@pytest.mark.parametrize(("images", "pixels"), [(3, 300), (3000, 1), (3000, 3), (200, 2304)])
@pytest.mark.parametrize("rebalance", ["none", "inverse"])
def test_many_images(images, pixels, rebalance):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, 3, pixels, generator=generator)
    weight = torch.rand(images, generator=generator)
    weight[1] = 0
    with emulated():
        found = ops.pseudo_label_loss(logits, None, rebalance, weight=weight)
    wanted = reference.pseudo_label_loss(logits.double(), None, rebalance, weight=weight.double())
    assert_close(found, wanted, terms=images * pixels)


@pytest.mark.parametrize("each", [1, 3, 1500])
def test_many_sums_in_triton(each):
    generator = torch.Generator().manual_seed(0)
    sums, weight = (torch.rand(n, generator=generator) for n in (3000, 3000 // each))
    found = torch.empty(())
    _triton.load_module("reduction").mean_of_sums(sums, weight, len(weight), 10, found)
    weighted = sums.double().view(-1, each) * weight.double()[:, None]
    assert_close(found, weighted.sum() / (10 * weight.double().sum()), terms=3000)


def test_a_weight_that_changes_before_the_way_back_is_noticed(backend, device):
    p, z = (m.to(device) for m in maps(torch.float32, 2))
    p.requires_grad_()
    weight = torch.ones(3, device=device)
    loss = ops.pixel_similarity(p, z, weight=weight)
    weight.mul_(2)
    if backend == "reference":
        loss.backward()  # it keeps quotients of them
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
