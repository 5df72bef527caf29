import torch

from densesiam import ops, reference
from tests.ops.suite import Case, Error, Maker, OpSuite


class TestLabelMap(OpSuite):
    op = "label_map"
    CASES = {
        "up": Case(lambda m: [m.features(2, 12, 6, 7), (24, 28)], ()),
        "down": Case(lambda m: [m.features(2, 5, 9, 11), (4, 3)], ()),
        "odd": Case(lambda m: [m.features(1, 3, 5, 4), (13, 17)], ()),
        "one number": Case(lambda m: [m.features(2, 27, 4, 4), 9], ()),
        "same size": Case(lambda m: [m.features(2, 4, 5, 6), (5, 6)], ()),
        "one class": Case(lambda m: [m.features(2, 1, 3, 3), 5], ()),
    }
    ERRORS = {
        "flat": Error(
            lambda m: [m.features(2, 3, 4), 5],
            ValueError,
            "logits must be (B, K, h, w), got shape (2, 3, 4)",
        ),
        "empty": Error(
            lambda m: [m.features(2, 0, 4, 4), 5],
            ValueError,
            "logits have no values, got shape (2, 0, 4, 4)",
        ),
        "size": Error(
            lambda m: [m.features(2, 3, 4, 4), (5, -1)],
            ValueError,
            "size must be positive, an int or (height, width), got (5, -1)",
        ),
    }

    def compare(self, actual, expected, dtype, what):
        # Rounding may settle a near tie either way; test_labels_are_the_greatest bounds how near.
        assert actual.dtype == torch.int64
        assert actual.shape == expected.shape
        assert (actual.cpu() != expected).float().mean() <= 0.01, what

    def test_labels_are_the_greatest(self, case, backend, dtype, layout, device):
        logits, size = case.make(Maker(dtype, layout, device))
        labels = ops.label_map(logits, size)
        pair = size if isinstance(size, tuple) else (size, size)
        exact = logits.double().cpu()
        whole = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64).expand(exact.shape[0], 4)
        resized = reference.overlap_sample(exact, whole, pair)
        chosen = resized.gather(1, labels.cpu().unsqueeze(1)).squeeze(1)
        # Interpolation in float32 moves a logit by a few roundings of the largest.
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        assert (resized.amax(1) - chosen).max() <= 8 * eps * exact.abs().max()

    def test_ties_go_to_the_lowest_index(self, backend, device):
        logits = torch.zeros(1, 5, 3, 3, device=device)
        logits[:, 2:4] = 1.0
        assert (ops.label_map(logits, (7, 8)) == 2).all()
