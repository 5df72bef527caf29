import pytest
import torch

from densesiam import ops
from tests.ops.suite import Case, Error, Maker, OpSuite
from tests.tolerance import assert_close


def own(**keywords):
    return Case(lambda m: [m.features(2, 12, 5, 6, scale=2)], keywords=keywords)


def other(**keywords):
    return Case(lambda m: [m.features(2, 12, 5, 6), m.features(2, 12, 5, 6)], keywords=keywords)


class TestPseudoLabelLoss(OpSuite):
    op = "pseudo_label_loss"
    CASES = {
        "other view": other(),
        "own": own(),
        "each pixel": own(reduction="none"),
        "frequency": own(rebalance="frequency"),
        "inverse": other(rebalance="inverse"),
        "inverse, each pixel": other(rebalance="inverse", reduction="none"),
        "given counts": Case(
            lambda m: [m.features(2, 6, 4), None, "inverse", m.integers(50, 6)],
        ),
        "many classes": Case(lambda m: [m.features(1, 130, 7, 3)]),
        "many pixels": Case(
            lambda m: [m.features(2, 5, 33, 35)], keywords={"rebalance": "inverse"}
        ),
        "vectors": Case(lambda m: [m.features(9, 4), m.features(9, 4), "frequency"]),
        "one class": Case(lambda m: [m.features(2, 1, 3, 3)], cancels=True),
    }
    ERRORS = {
        "targets' shape": Error(
            lambda m: [m.features(2, 3, 4), m.features(2, 3, 5)],
            ValueError,
            "targets must have the logits' shape (2, 3, 4), got (2, 3, 5)",
        ),
        "rebalance": Error(
            lambda m: [m.features(2, 3, 4), None, "sqrt"],
            ValueError,
            "rebalance must be one of none, frequency, inverse, got 'sqrt'",
        ),
        "counts": Error(
            lambda m: [m.features(2, 3, 4), None, "inverse", m.integers(5, 4)],
            ValueError,
            "counts must have shape (K,) = (3,), got (4,)",
        ),
        "no classes": Error(
            lambda m: [m.features(2, 0, 4)],
            ValueError,
            "logits must be (B, K, *) with K >= 1, got shape (2, 0, 4)",
        ),
    }

    @pytest.mark.parametrize("rebalance", ["none", "frequency", "inverse"])
    def test_ties_go_to_the_lowest_index(self, backend, device, rebalance):
        logits = torch.zeros(1, 4, 2, 3, device=device, requires_grad=True)
        targets = torch.zeros(1, 4, 2, 3, device=device)
        targets[:, 1:3] = 1.0
        loss = ops.pseudo_label_loss(logits, targets, rebalance)
        (grad,) = torch.autograd.grad(loss, logits)
        assert (grad[:, 1] < 0).all()
        assert (grad[:, [0, 2, 3]] > 0).all()

    def test_an_absent_class_of_given_counts_adds_nothing(self, backend, device):
        m = Maker(torch.float32, "contiguous", device)
        logits = m.features(1, 3, 8).requires_grad_()
        counts = torch.tensor([4, 0, 4], device=device)
        losses = ops.pseudo_label_loss(logits, None, "inverse", counts, "none")
        absent = logits.argmax(1) == 1
        assert absent.any()
        assert not losses[absent].any()
        assert losses.isfinite().all()

    def test_split_counts_give_the_loss_of_the_whole(self, backend, device):
        # What a distributed method does: counts summed over processes, then each its own loss.
        m = Maker(torch.float64, "contiguous", device)
        logits = m.features(4, 5, 9)
        counts = torch.bincount(logits.argmax(1).flatten(), minlength=5)
        whole = ops.pseudo_label_loss(logits, rebalance="inverse")
        halves = [
            ops.pseudo_label_loss(half, rebalance="inverse", counts=counts)
            for half in logits.chunk(2)
        ]
        assert_close(sum(halves) / 2, whole, terms=logits.numel(), rms=5)
