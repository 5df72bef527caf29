import pytest
import torch

from densesiam import ops, reference
from tests.ops.suite import Case, Error, Maker, OpSuite, upcast
from tests.rounding import accumulate_dtype, deviations
from tests.tolerance import tolerance


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

    def compare(self, actual, expected, bound, what):
        # Rounding may settle a near tie either way: see test_labels_are_the_greatest.
        assert actual.dtype == torch.int64
        assert actual.shape == expected.shape

    def test_labels_are_the_greatest(self, case, backend, dtype, layout, device):
        logits, size = case.make(Maker(dtype, layout, device))
        labels = ops.label_map(logits, size)
        pair = size if isinstance(size, tuple) else (size, size)
        exact = upcast(logits)
        whole = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64).expand(exact.shape[0], 4)

        def resize():
            return [reference.overlap_sample(exact, whole, pair)]

        (resized,), (steps,) = resize(), deviations(resize)
        near = tolerance(1, steps, accumulate_dtype(dtype))
        best, chosen = resized.argmax(1, keepdim=True), labels.cpu().unsqueeze(1)
        lost = resized.gather(1, best) - resized.gather(1, chosen)
        assert (lost <= near.gather(1, best) + near.gather(1, chosen)).all()

    def test_ties_go_to_the_lowest_index(self, backend, device):
        logits = torch.zeros(1, 5, 3, 3, device=device)
        logits[:, 2:4] = 1.0
        assert (ops.label_map(logits, (7, 8)) == 2).all()

    def test_no_images_take_no_memory_whatever_the_size(self, backend, device):
        if backend == "reference":
            pytest.skip("it makes the coordinates of a row and a column all the same")
        if backend != "cpu":
            pytest.skip("an image has at most 2^31 - 1 elements there")
        most = 2**31 - 1
        assert ops.label_map(torch.empty(0, 2, 3, 3, device=device), most).shape == (0, most, most)

    def test_a_class_masked_with_infinity_is_never_chosen(self, backend, dtype, layout, device):
        logits = Maker(dtype, layout, device).features(1, 5, 4, 4)
        others = logits[:, [0, 1, 3, 4]]
        logits[:, 2] = -torch.inf
        for size in (3, 4, 9):
            labels = ops.label_map(others, size)
            assert torch.equal(ops.label_map(logits, size), labels + (labels > 1))

    def test_it_reads_the_pixels_that_overlap_sample_reads(self, backend, device, dtype):
        # NaN is greater than all numbers, so one of it labels every sample that reads its pixel.
        whole = torch.tensor([[0.0, 0, 1, 1]], dtype=accumulate_dtype(dtype))
        sides = [(6, 18), (18, 6)]
        if backend != "triton":  # whose interpreter takes 20 s for them
            sides += [(7, 80), (80, 7), (27, 56)]
        for pixels, cells in sides:
            poisoned = torch.zeros(pixels, pixels, dtype=dtype).fill_diagonal_(torch.nan)
            for shape in ((pixels, 1), (1, pixels)):
                size = tuple(cells if side > 1 else 1 for side in shape)
                logits = torch.stack([torch.zeros_like(poisoned), poisoned], 1).view(-1, 2, *shape)
                read = reference.overlap_sample(logits, whole.expand(pixels, 4), size)[:, 1].isnan()
                for layout in ("contiguous", "channels_last"):
                    given = Maker(dtype, layout, device).arranged(logits)
                    assert torch.equal(ops.label_map(given, size).cpu(), read.long())
