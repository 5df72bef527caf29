import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from densesiam.reference import pixel_similarity
from tests.tolerance import about, assert_close, assert_within, tolerance

from .support import properties, randn, seeds

KINDS = ["cosine", "cross_entropy"]
kinds = pytest.mark.parametrize("kind", KINDS)
shapes = st.sampled_from([(1, 1), (3, 5), (2, 4, 7), (3, 6, 2, 5), (2, 3, 2, 2, 2)])


def library_loss(p, z, kind):
    if kind == "cosine":
        return -F.cosine_similarity(p, z, dim=1)
    return F.cross_entropy(p, z.softmax(dim=1), reduction="none")


@properties
@given(shapes, st.sampled_from(KINDS), st.sampled_from([1e-3, 1.0, 30.0]), seeds)
def test_equals_the_library_forward_and_backward(shape, kind, scale, seed):
    p = (scale * randn(*shape, seed=seed)).requires_grad_()
    z = scale * randn(*shape, seed=seed + 1)
    losses, expected = pixel_similarity(p, z, kind, reduction="none"), library_loss(p, z, kind)
    # Sums over channels, of terms that are at most the logits' size (of cosines at most 1).
    size = max(1, float(p.detach().abs().max()), float(z.abs().max()))
    assert_close(losses, expected, terms=3 * shape[1], rms=size)
    assert_close(pixel_similarity(p, z, kind), expected.mean(), terms=3 * p.numel(), rms=size)
    gradient, expected_gradient = (
        torch.autograd.grad(result.sum(), p)[0] for result in (losses, expected)
    )
    if kind == "cosine":
        size = 1 / float(p.detach().norm(dim=1).min())  # differences of unit vectors, over |p|
    assert_close(gradient, expected_gradient, terms=6 * shape[1], rms=size)


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(kind, dtype):
    p, z = randn(2, 16, 5).to(dtype).requires_grad_(), randn(2, 16, 5, seed=1).to(dtype)
    q = p.detach().double().requires_grad_()
    loss, exact = pixel_similarity(p, z, kind), pixel_similarity(q, z.double(), kind)
    assert_close(loss, exact, terms=3 * 16, rms=1)  # float32's rounding
    loss.backward()
    exact.backward()
    rounded = tolerance(1, q.grad, dtype)  # once, to their own type
    assert_within(p.grad, q.grad, rounded + tolerance(3 * 16, 1 / 10, torch.float32))


@kinds
def test_only_p_receives_a_gradient(kind):
    p, z = randn(2, 3, 4).requires_grad_(), randn(2, 3, 4, seed=1).requires_grad_()
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    pixel_similarity(p, z, kind, weight).backward()
    assert p.grad is not None
    assert z.grad is None
    assert weight.grad is None
    shared = randn(2, 3, 4).requires_grad_()
    pixel_similarity(shared, shared, "cosine").backward()  # p = z: already at its minimum
    # The difference of two unit vectors, over |p| and 8 pixels.
    size = 1 / float(shared.detach().norm(dim=1).min()) / 8
    assert_close(shared.grad, torch.zeros_like(shared), terms=6 * 3, rms=size)


@properties
@given(st.sampled_from(KINDS), st.lists(st.floats(0, 4), min_size=3, max_size=3), seeds)
def test_weighted_mean(kind, weights, seed):
    p, z = randn(3, 4, 2, 3, seed=seed), randn(3, 4, 2, 3, seed=seed + 1)
    weight = torch.tensor(weights, dtype=torch.float64)
    losses = library_loss(p, z, kind)
    weighted = losses * weight[:, None, None]
    size = 4 * 4  # the largest weight, and logits of less than that
    assert_close(pixel_similarity(p, z, kind, weight, "none"), weighted, terms=3 * 4, rms=size)
    expected = weighted.sum() / (weight.sum() * 6) if weight.sum() > 0 else torch.zeros(())
    found = pixel_similarity(p, z, kind, weight)
    assert_close(found, expected.double(), terms=3 * p.numel(), rms=4)


@kinds
def test_bool_weight_selects_images(kind):
    p, z = randn(4, 3, 5), randn(4, 3, 5, seed=1)
    keep = torch.tensor([True, False, True, False])
    found = pixel_similarity(p, z, kind, keep)
    assert_close(found, pixel_similarity(p[keep], z[keep], kind), terms=4 * 5, rms=4)


@kinds
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_images_of_weight_zero_count_nowhere(kind, poison):
    p, z = randn(3, 4, 5), randn(3, 4, 5, seed=1)
    p[1], z[1] = poison, poison
    p.requires_grad_()
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    kept = torch.tensor([0, 2])
    loss = pixel_similarity(p, z, kind, weight)
    assert loss == pixel_similarity(p[kept], z[kept], kind, weight[kept])
    assert (pixel_similarity(p, z, kind, weight, "none")[1] == 0).all()
    (gradient,) = torch.autograd.grad(loss, p, create_graph=True)
    assert (gradient[1] == 0).all()
    (second,) = torch.autograd.grad(gradient.square().sum(), p)
    assert second.isfinite().all()
    assert (second[1] == 0).all()


@kinds
def test_no_weight_at_all_is_zero(kind):
    p = randn(2, 3, 4).requires_grad_()
    loss = pixel_similarity(p, randn(2, 3, 4, seed=1), kind, torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert (p.grad == 0).all()


def test_norms_are_clamped_as_in_the_library():
    z = randn(1, 3, 1)
    for length in (0.0, 1e-9, 9e-9, 1.1e-8, 1.0):
        p = length * F.normalize(randn(1, 3, 1, seed=1), dim=1)
        for a, b in ((p, z), (z, p)):
            assert_close(pixel_similarity(a, b), library_loss(a, b, "cosine").mean(), 3 * 3, rms=1)


def test_zero_vector_has_finite_derivatives():
    p, z = torch.zeros(1, 3, 1, dtype=torch.float64, requires_grad=True), randn(1, 3, 1)
    (gradient,) = torch.autograd.grad(pixel_similarity(p, z), p, create_graph=True)
    assert_close(gradient, -F.normalize(z, dim=1) / 1e-8, terms=6)
    (second,) = torch.autograd.grad(gradient.sum(), p)
    assert (second == 0).all()  # linear in p below the clamp


@properties
@given(shapes, seeds)
def test_bounds(shape, seed):
    p, z = randn(*shape, seed=seed), randn(*shape, seed=seed + 1)
    cosine = pixel_similarity(p, z, "cosine", reduction="none")
    near = tolerance(3 * shape[1], 1, torch.float64)
    assert cosine.abs().max() <= 1 + near
    scaled = pixel_similarity(3 * p, 0.2 * z, "cosine", reduction="none")
    assert_within(cosine, scaled, near)
    soft = pixel_similarity(p, z, "cross_entropy", reduction="none")
    entropy = torch.distributions.Categorical(logits=z.movedim(1, -1)).entropy()
    near = tolerance(3 * shape[1], 10, torch.float64)  # logits below 5, and the 5 below
    assert (soft >= entropy - near).all()
    assert_within(pixel_similarity(z + 5, z, "cross_entropy", reduction="none"), entropy, near)


@pytest.mark.parametrize(("K", "start", "floor"), [(27, 3.30, 2.85), (128, 4.85, 4.37)])
def test_values_at_the_start_of_training(K, start, floor):
    # The projector's last BN gives z ~ N(0, 1). 20000 pixels: the mean is good to 0.002.
    z = randn(1, K, 20_000, dtype=torch.float32)
    uniform = pixel_similarity(torch.zeros_like(z), z, "cross_entropy").item()
    assert uniform == about(math.log(K), terms=K + 20_000)
    assert uniform == pytest.approx(start, abs=0.006)  # the stated values have two decimals
    assert pixel_similarity(z, z, "cross_entropy").item() == pytest.approx(floor, abs=0.007)
