import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from densesiam.reference import overlap_sample, overlap_similarity, pixel_similarity
from tests.tolerance import assert_close

from .support import STEPS, box_kinds, library_sample, make_boxes, properties, randn, reach, seeds


@properties
@given(st.sampled_from(["cosine", "cross_entropy"]), box_kinds, box_kinds, seeds)
def test_equals_the_library_composition(kind, kind_p, kind_z, seed):
    p, z = randn(2, 3, 5, 4, seed=seed).requires_grad_(), randn(2, 3, 6, 7, seed=seed + 1)
    boxes_p, boxes_z = make_boxes(kind_p, "inside", 2, seed), make_boxes(kind_z, "inside", 2, seed)
    samples_p, samples_z = library_sample(p, boxes_p, (3, 2)), library_sample(z, boxes_z, (3, 2))
    expected = (
        -F.cosine_similarity(samples_p, samples_z)
        if kind == "cosine"
        else F.cross_entropy(samples_p, samples_z.softmax(dim=1), reduction="none")
    )
    losses = overlap_similarity(p, z, boxes_p, boxes_z, (3, 2), kind, reduction="none")
    # A sample is off by the rounding of its coordinates, and so is a loss: the cosine by as much
    # as the shortest vector is shorter than its error.
    shortest = min(float(s.norm(dim=1).min()) for s in (samples_p, samples_z))
    size = reach(torch.cat([boxes_p, boxes_z]), (2, 3, 6, 7)) / min(shortest, 1)
    assert_close(losses, expected, terms=STEPS * 3, rms=size)
    (gradient,) = torch.autograd.grad(losses.sum(), p)
    (wanted,) = torch.autograd.grad(expected.sum(), p)
    # Six samples of three channels; the cosine's gradient is divided by the length once more.
    assert_close(gradient, wanted, terms=STEPS * 18, rms=size / min(shortest, 1))


def test_no_box_is_the_whole_map():
    p, z = randn(2, 3, 5, 4), randn(2, 3, 6, 7, seed=1)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64).expand(2, 4)
    expected = overlap_similarity(p, z, whole, whole, 3)
    assert overlap_similarity(p, z, None, None, 3) == expected
    assert overlap_similarity(p, z, None, whole, 3) == expected
    # At the map's own size nothing is resampled.
    found = overlap_similarity(p, p.flip(1), None, None, (5, 4))
    assert_close(found, pixel_similarity(p, p.flip(1)), terms=STEPS, rms=reach(whole, p.shape))


def test_images_of_weight_zero_may_have_boxes_that_are_not_finite():
    p, z = randn(3, 4, 5, 5).requires_grad_(), randn(3, 4, 5, 5, seed=1)
    boxes = make_boxes("inside", "mirrored", 3)
    broken = boxes.clone()
    broken[1] = float("nan")
    valid = torch.tensor([True, False, True])
    loss = overlap_similarity(p, z, broken, broken, 3, weight=valid)
    expected = overlap_similarity(p[valid], z[valid], boxes[valid], boxes[valid], 3)
    assert_close(loss, expected, terms=2 * 3 * 3, rms=1)
    (gradient,) = torch.autograd.grad(loss, p)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


def test_only_p_receives_a_gradient():
    p, z = randn(2, 3, 4, 4).requires_grad_(), randn(2, 3, 4, 4, seed=1).requires_grad_()
    overlap_similarity(p, z, None, None, 3).backward()
    assert p.grad is not None
    assert z.grad is None


@pytest.mark.parametrize("kind", ["cosine", "cross_entropy"])
def test_half_types_round_the_samples(kind):
    # The samples have the features' type, as overlap_sample gives them.
    p, z = randn(2, 8, 5, 4).bfloat16(), randn(2, 8, 6, 7, seed=1).bfloat16()
    boxes = make_boxes("inside", "inside", 2)
    samples = [overlap_sample(x, boxes, 3).float() for x in (p, z)]
    expected = pixel_similarity(*samples, kind)
    found = overlap_similarity(p, z, boxes, boxes, 3, kind)
    assert_close(found, expected, terms=2 * 3 * 3 * 8, rms=3)
