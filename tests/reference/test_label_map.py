import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from densesiam.reference import label_map
from tests.tolerance import tolerance

from .support import properties, randn, seeds

lengths = st.integers(1, 9)


@properties
@given(st.integers(1, 3), st.integers(1, 5), lengths, lengths, lengths, lengths, seeds)
def test_equals_interpolate_and_argmax(B, K, h, w, H, W, seed):
    logits = randn(B, K, h, w, seed=seed)
    expected = F.interpolate(logits, (H, W), mode="bilinear", align_corners=False).argmax(dim=1)
    labels = label_map(logits, (H, W))
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(60, 47), (5, 20), 13])
def test_interpolates_in_float32(dtype, size):
    logits = randn(2, 27, 20, 20).to(dtype)
    exact = F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
    best, second = exact.topk(2, dim=1).values.unbind(dim=1)
    # Eight steps to coordinates of up to 20, times the difference of two normal numbers, twice.
    clear = best - second > 2 * tolerance(8, 20 * 2**0.5, torch.float32)
    assert clear.float().mean() > 0.95
    assert torch.equal(label_map(logits, size)[clear], exact.argmax(dim=1)[clear])


def test_half_types_are_not_rounded_after_interpolation():
    # Halfway between 1 and 1 + eps class 1 wins by eps / 4: rounded to bfloat16 it would tie.
    eps = torch.finfo(torch.bfloat16).eps
    logits = torch.tensor([[1 + eps / 2, 1 + eps / 2], [1, 1 + eps]]).view(1, 2, 1, 2)
    logits[0, 0] = 1
    labels = label_map(logits.bfloat16(), (1, 4))
    assert labels.tolist() == [[[0, 1, 1, 1]]]


def test_own_size_is_argmax():
    logits = randn(2, 5, 8, 6, dtype=torch.float32)
    assert torch.equal(label_map(logits, (8, 6)), logits.argmax(dim=1))


@properties
@given(lengths, lengths, seeds)
def test_ties_go_to_the_lowest_index(H, W, seed):
    logits = randn(1, 2, 3, 4, seed=seed, dtype=torch.float32)
    twice = torch.cat([logits, logits], dim=1)  # every class again, two channels on
    assert torch.equal(label_map(twice, (H, W)), label_map(logits, (H, W)))
    assert (label_map(torch.zeros(1, 4, 3, 4), (H, W)) == 0).all()


def test_no_graph_is_kept():
    assert not label_map(randn(1, 2, 3, 3).requires_grad_(), 4).requires_grad
