import pytest
import torch

from densesiam import ops, reference
from tests.ops.suite import Case, Error, Maker, OpSuite
from tests.tolerance import assert_close


def own(**keywords):
    return Case(lambda m: [m.features(2, 12, 5, 6, scale=2)], keywords=keywords)


def other(**keywords):
    return Case(lambda m: [m.features(2, 12, 5, 6), m.features(2, 12, 5, 6)], keywords=keywords)


def weighted(rebalance="none", reduction="mean"):
    def make(m):
        maps = m.features(3, 12, 5, 6), m.features(3, 12, 5, 6)
        return [*maps, rebalance, None, reduction, m.weights(3)]

    return Case(make)


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
        "weighted": weighted(),
        "weighted, each pixel": weighted(reduction="none"),
        "weighted, inverse": weighted(rebalance="inverse"),
        "weighted, inverse, each pixel": weighted(rebalance="inverse", reduction="none"),
        "weighted, given counts": Case(
            lambda m: [
                m.features(3, 6, 4),
                None,
                "frequency",
                m.integers(50, 6),
                "mean",
                m.weights(3),
            ]
        ),
        "bool weight": Case(
            lambda m: [m.features(3, 4, 5), None, "none", None, "mean", m.weights(3) > 0]
        ),
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
        "weight": Error(
            lambda m: [m.features(2, 3, 4), None, "none", None, "mean", m.weights(3)],
            ValueError,
            "weight must have shape (B,) = (2,), got (3,)",
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

    @pytest.mark.parametrize("classes", [5, 8, 27, 130])
    def test_the_first_nan_is_the_label(self, backend, device, layout, classes):
        # As torch.argmax has it. Their own losses are NaN, but they count in their class.
        m = Maker(torch.float32, layout, device)
        logits = m.features(1, classes, 4, 8)
        logits[0, 3, 0, 0] = logits[0, 4, 0, 0] = torch.nan
        logits[0, 2, 0, 1], logits[0, :, 0, 2] = torch.inf, -torch.inf
        losses = ops.pseudo_label_loss(logits, None, "inverse", reduction="none")
        expected = reference.pseudo_label_loss(logits, None, "inverse", reduction="none")
        finite = expected.isfinite()
        assert finite.sum() == 4 * 8 - 3
        assert (losses.isfinite() == finite).all()
        # Losses of up to 8, weights of up to the number of pixels.
        assert_close(losses[finite], expected[finite], terms=classes + 3, rms=8 * 32)

    @pytest.mark.parametrize("classes", [1, 5, 8, 130])
    def test_targets_of_minus_infinity_choose_the_first_class(
        self, backend, device, layout, classes
    ):
        m = Maker(torch.float32, layout, device)
        logits, targets = m.features(1, classes, 4, 8), m.features(1, classes, 4, 8)
        targets[..., 0] = -torch.inf
        targets[:, : classes // 2, :, 1] = -torch.inf
        targets[:, classes // 2 + 1 :, :, 2] = -torch.inf
        losses = ops.pseudo_label_loss(logits, targets, reduction="none")
        expected = reference.pseudo_label_loss(logits, targets, reduction="none")
        chosen = logits.log_softmax(1)[:, 0, :, 0]
        assert_close(expected[..., 0], -chosen, terms=classes + 3, rms=8)
        assert_close(losses, expected, terms=classes + 3, rms=8)  # losses of up to 8

    @pytest.mark.parametrize("rebalance", ["none", "frequency", "inverse"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_an_image_of_weight_zero_counts_nowhere(self, backend, device, rebalance, reduction):
        m = Maker(torch.float32, "contiguous", device)
        logits, targets = m.features(3, 4, 5, scale=2), m.features(3, 4, 5)
        weight = torch.tensor([1.0, 0.0, 1.0], device=device)
        alone = ops.pseudo_label_loss(logits[::2], targets[::2], rebalance, reduction=reduction)
        logits[1], targets[1] = torch.nan, torch.inf
        logits.requires_grad_()
        result = ops.pseudo_label_loss(
            logits, targets, rebalance, reduction=reduction, weight=weight
        )
        (grad,) = torch.autograd.grad(result.sum(), logits)
        if reduction == "none":
            assert not result[1].any()
            result = result[::2]
        # Losses of up to 8, weights of up to the number of pixels.
        assert_close(result, alone, terms=2 * 5 + 3 * 4, rms=8 * 10)
        assert grad[::2].any()
        assert not grad[1].any()

    def test_any_other_weight_counts_whole_in_the_counts(self, backend, device):
        m = Maker(torch.float32, "contiguous", device)
        logits = m.features(2, 4, 5)
        weight = torch.tensor([0.25, 2.0], device=device)
        plain = ops.pseudo_label_loss(logits, None, "frequency", reduction="none")
        loss = ops.pseudo_label_loss(logits, None, "frequency", weight=weight)
        expected = (0.25 * plain[0].sum() + 2 * plain[1].sum()) / (2.25 * 5)
        assert_close(loss, expected, terms=2 * 5 + 3 * 4, rms=5)

    @pytest.mark.parametrize("rebalance", ["none", "inverse"])
    def test_no_weight_at_all_gives_zero(self, backend, device, rebalance):
        m = Maker(torch.float32, "contiguous", device)
        logits = m.features(2, 4, 5).requires_grad_()
        loss = ops.pseudo_label_loss(logits, None, rebalance, weight=torch.zeros(2, device=device))
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0
        assert not grad.any()

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
