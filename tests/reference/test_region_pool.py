import torch
from hypothesis import given
from hypothesis import strategies as st

from densesiam.reference import region_pool
from tests.tolerance import about, assert_close

from .support import properties, randn, seeds

# Up to 25 pixels, of which each has a mask of up to 5 regions; running sums of normal numbers stay
# below 10.
TERMS, SIZE = 25 + 5, 10

shapes = st.tuples(*[st.integers(1, 4)] * 3, st.integers(1, 5), st.integers(1, 5))


@properties
@given(shapes, st.booleans(), seeds)
def test_equals_the_sum_written_out(shape, normalize, seed):
    B, C, N, H, W = shape
    features, logits = randn(B, C, H, W, seed=seed), randn(B, N, H, W, seed=seed + 1)
    mask = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = (mask[:, :, None] * features[:, None]).sum(dim=(3, 4))
    if normalize:
        expected = expected / mask.sum(dim=(2, 3))[:, :, None]
    assert_close(region_pool(features, logits, normalize), expected, TERMS, rms=SIZE)


@properties
@given(shapes, seeds)
def test_regions_share_the_map_out(shape, seed):
    B, C, N, H, W = shape
    features, logits = randn(B, C, H, W, seed=seed), randn(B, N, H, W, seed=seed + 1)
    regions = region_pool(features, logits)
    assert_close(regions.sum(dim=1), features.sum(dim=(2, 3)), TERMS, rms=SIZE)
    # Neither the order of pixels nor a constant added to a pixel's logits matters.
    order = torch.randperm(H * W, generator=torch.Generator().manual_seed(seed))
    shuffled = [x.flatten(2)[:, :, order].view_as(x) for x in (features, logits)]
    assert_close(region_pool(*shuffled), regions, TERMS, rms=SIZE)
    shift = randn(B, 1, H, W, seed=seed + 2)
    assert_close(region_pool(features, logits + shift), regions, TERMS, rms=SIZE)
    # Regions follow their channel.
    assert_close(region_pool(features, logits.flip(1)), regions.flip(1), TERMS, rms=SIZE)


def test_confident_logits_cut_hard_regions():
    features = torch.arange(6.0).view(1, 1, 2, 3)
    labels = torch.tensor([[[0, 1, 1], [2, 0, 1]]])
    logits = 200.0 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)
    assert region_pool(features, logits)[0, :, 0].tolist() == [4, 8, 3, 0]
    # A region without mass is divided by 1e-6, not by 0.
    expected = torch.tensor([2, 8 / 3, 3, 0])
    assert_close(region_pool(features, logits, normalize=True)[0, :, 0], expected, terms=6)


def test_average_of_a_constant_is_the_constant():
    regions = region_pool(torch.full((2, 3, 4, 4), 7.0), randn(2, 5, 4, 4).float(), normalize=True)
    assert_close(regions, torch.full((2, 5, 3), 7.0), terms=2 * 16)


def test_nearly_empty_region_is_clamped():
    # Mass of region 1: 4 e^-20 = 8e-9, below the clamp of 1e-6.
    logits = torch.tensor([0.0, -20.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    ones = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    mass = 4 * torch.tensor([0.0, -20.0], dtype=torch.float64).softmax(0)[1].item()
    average = region_pool(ones, logits, normalize=True)[0, 1, 0].item()
    assert average == about(mass / 1e-6, terms=4, dtype="float64")


def test_both_arguments_receive_gradients():
    features, logits = randn(1, 2, 3, 3).requires_grad_(), randn(1, 4, 3, 3).requires_grad_()
    region_pool(features, logits).square().sum().backward()
    assert features.grad.abs().sum() > 0
    assert logits.grad.abs().sum() > 0
