import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from densesiam.reference import pseudo_label_loss
from tests.tolerance import assert_close

from .support import properties, randn, seeds

shapes = st.sampled_from([(1, 1), (6, 3), (2, 5, 7), (3, 4, 3, 5), (1, 9, 2, 2)])
rebalances = st.sampled_from(["none", "frequency", "inverse"])


def library_weights(n, rebalance):
    """The class weights in plain Python: n is a list of counts."""
    total, present = sum(n), sum(c > 0 for c in n)
    return {
        "none": [1.0 for _ in n],
        "frequency": [c / total for c in n],
        "inverse": [total / (present * c) if c else 0.0 for c in n],
    }[rebalance]


@properties
@given(shapes, rebalances, st.booleans(), seeds)
def test_equals_the_library_forward_and_backward(shape, rebalance, cross_view, seed):
    logits = randn(*shape, seed=seed).requires_grad_()
    targets = randn(*shape, seed=seed + 1) if cross_view else None
    labels = (logits if targets is None else targets).argmax(dim=1)  # no ties in random numbers
    n = labels.flatten().bincount(minlength=shape[1]).tolist()
    weight = torch.tensor(library_weights(n, rebalance), dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight, reduction="none")
    losses = pseudo_label_loss(logits, targets, rebalance, reduction="none")
    # Logits of up to 5, and weights of up to the number of pixels.
    size = 5 * max(1, float(weight.max()))
    assert_close(losses, expected, terms=3 * shape[1], rms=size)
    loss = pseudo_label_loss(logits, targets, rebalance)
    # Not divided by the weights' sum.
    assert_close(loss, expected.mean(), terms=logits.numel(), rms=size)
    gradients = [torch.autograd.grad(mean, logits)[0] for mean in (loss, expected.mean())]
    assert_close(*gradients, terms=3 * shape[1], rms=size)


@properties
@given(st.sampled_from(["frequency", "inverse"]), st.sampled_from([torch.int64, torch.float32]))
def test_given_counts_replace_this_calls_own(rebalance, dtype):
    logits = randn(4, 3, 5)
    counts = torch.tensor([700, 200, 100], dtype=dtype)  # as if summed over devices
    weight = torch.tensor(library_weights([700, 200, 100], rebalance), dtype=torch.float64)
    expected = F.cross_entropy(logits, logits.argmax(dim=1), weight, reduction="none").mean()
    found = pseudo_label_loss(logits, rebalance=rebalance, counts=counts)
    assert_close(found, expected, terms=logits.numel(), rms=5)


def test_shards_with_common_counts_average_to_the_whole():
    logits = randn(4, 3, 5)
    counts = logits.argmax(dim=1).flatten().bincount(minlength=3)
    shards = [pseudo_label_loss(x, rebalance="inverse", counts=counts) for x in logits.chunk(2)]
    whole = pseudo_label_loss(logits, rebalance="inverse")
    assert_close(sum(shards) / 2, whole, terms=logits.numel(), rms=5)


@pytest.mark.parametrize("rebalance", ["frequency", "inverse"])
@pytest.mark.parametrize("counts", [[9, 0, 1], [0, 0, 0]])
def test_class_of_count_zero_weighs_nothing(rebalance, counts):
    targets = F.one_hot(torch.tensor([0, 1, 2, 1]), 3).double()
    logits = randn(4, 3).requires_grad_()
    losses = pseudo_label_loss(logits, targets, rebalance, torch.tensor(counts), reduction="none")
    assert losses.isfinite().all()
    assert (losses[[1, 3]] == 0).all()
    assert (losses[[0, 2]] > 0).all() == (sum(counts) > 0)
    assert torch.autograd.grad(losses.sum(), logits)[0].isfinite().all()


def test_inverse_gives_every_class_present_the_same_share():
    targets = F.one_hot(torch.tensor([0, 0, 0, 0, 0, 2, 2, 3]), 5).double()
    losses = pseudo_label_loss(torch.zeros(8, 5).double(), targets, "inverse", reduction="none")
    shares = torch.stack([losses[:5].sum(), losses[5:7].sum(), losses[7:].sum()])
    assert_close(shares, shares[:1].expand(3), terms=5)
    # ... and leaves the mean of the weights at 1.
    assert_close(losses.mean(), torch.tensor(5.0).double().log(), terms=8)


def test_ties_go_to_the_lowest_index():
    targets = torch.tensor(
        [[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [3.0, 0.0, 3.0], [-torch.inf, -torch.inf, -torch.inf]]
    )
    labels = torch.tensor([0, 1, 0, 0])
    logits = randn(4, 3, dtype=torch.float32)
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert_close(pseudo_label_loss(logits, targets, reduction="none"), expected, 3, rms=5)


def test_nan_counts_as_the_greatest_and_stays_in_range():
    nan = float("nan")
    targets = torch.tensor([[1.0, nan, nan], [nan, nan, nan], [torch.inf, 0.0, nan]])
    logits = randn(3, 3, dtype=torch.float32)
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 2]), reduction="none")
    assert_close(pseudo_label_loss(logits, targets, reduction="none"), expected, 3, rms=5)


@properties
@given(rebalances, st.booleans(), seeds)
def test_weights_of_images_against_the_library(rebalance, bools, seed):
    logits = randn(4, 3, 5, seed=seed).requires_grad_()
    weight = torch.tensor([0.5, 0.0, 1.0, 3.0], dtype=torch.float64)
    if bools:
        weight = weight > 0
    labels = logits.argmax(dim=1)
    n = labels[[0, 2, 3]].flatten().bincount(minlength=3).tolist()  # the second does not count
    classes = torch.tensor(library_weights(n, rebalance), dtype=torch.float64)
    losses = F.cross_entropy(logits, labels, classes, reduction="none") * weight[:, None]
    found = pseudo_label_loss(logits, None, rebalance, reduction="none", weight=weight)
    size = 3 * 5 * max(1, float(classes.max()))
    assert_close(found, losses, terms=3 * 3, rms=size)
    expected = losses.sum() / (weight.sum() * 5)
    mean = pseudo_label_loss(logits, None, rebalance, weight=weight)
    assert_close(mean, expected, terms=logits.numel(), rms=size)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (mean, expected)]
    assert_close(*gradients, terms=3 * 3, rms=size)


def test_targets_receive_no_gradient():
    logits, targets = randn(2, 3, 4).requires_grad_(), randn(2, 3, 4, seed=1).requires_grad_()
    pseudo_label_loss(logits, targets).backward()
    assert logits.grad is not None
    assert targets.grad is None


def test_value_at_the_start_of_training():
    # z ~ N(0, 1) of 27 channels toward its own argmax; 20000 pixels: the mean is good to 0.003.
    z = randn(1, 27, 20_000, dtype=torch.float32)
    assert pseudo_label_loss(z).item() == pytest.approx(1.77, abs=0.008)
