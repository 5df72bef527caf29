import pytest
import torch

from densesiam import ops
from tests.ops.suite import Case, Error, Maker, OpSuite


def counts(dtype):
    def make(m: Maker):
        label = m.integers(6, 2, 17, 19, dtype=dtype)
        label[label == 5] = 127
        return [m.integers(4, 2, 17, 19, dtype=dtype), label, 4, 5, 127]

    return Case(make, ())


class TestConfusionMatrix(OpSuite):
    op = "confusion_matrix"
    CASES = {
        "int64": counts(torch.int64),
        "int32": counts(torch.int32),
        "int16": counts(torch.int16),
        "int8": counts(torch.int8),
        "uint8": counts(torch.uint8),
        "negative ignore_index": Case(
            lambda m: [m.integers(3, 50), m.integers(4, 50) - 1, 3, 3, -1], ()
        ),
        "flat, many classes": Case(
            lambda m: [m.integers(300, 5000), m.integers(200, 5000), 300, 200, 255], ()
        ),
    }
    ERRORS = {
        "shapes": Error(
            lambda m: [m.integers(3, 4, 5), m.integers(3, 4, 6), 3, 3, 255],
            ValueError,
            "prediction and label must have one shape, got (4, 5) and (4, 6)",
        ),
        "floats": Error(
            lambda m: [m.features(4, 5), m.integers(3, 4, 5), 3, 3, 255],
            TypeError,
            "prediction must hold integers, got torch.float32",
        ),
        "no classes": Error(
            lambda m: [m.integers(3, 4), m.integers(3, 4), 3, 0, 255],
            ValueError,
            "num_classes must be at least 1, got 0",
        ),
    }

    def compare(self, actual, expected, bound, what):
        assert torch.equal(actual.cpu(), expected.cpu()), what

    @pytest.mark.parametrize("name", ["label", "prediction"])
    @pytest.mark.parametrize("value", [-2, 7])
    def test_out_of_range(self, backend, device, name, value):
        prediction = torch.tensor([0, 1, 2, 1], device=device)
        label = torch.tensor([0, 1, 255, 1], device=device)
        (label if name == "label" else prediction)[3] = value
        if backend not in ("cuda", "emulator"):
            with pytest.raises(ValueError, match=rf"confusion_matrix: .*{name}.*{value}"):
                ops.confusion_matrix(prediction, label, 3, 3, 255)
        else:  # the CUDA kernel drops them: raising would wait for the device
            matrix = ops.confusion_matrix(prediction, label, 3, 3, 255)
            assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]

    @pytest.mark.parametrize("ignored", [-(2**63), 2**63 - 1])
    def test_the_ignored_label_may_be_any_of_64_bits(self, backend, device, ignored):
        prediction = torch.tensor([0, 1], device=device)
        label = torch.tensor([ignored, 1], device=device)
        matrix = ops.confusion_matrix(prediction, label, 2, 2, ignored)
        assert matrix.tolist() == [[0, 0], [0, 1]]

    def test_an_ignored_pixel_may_have_any_prediction(self, backend, device):
        prediction = torch.tensor([0, 99], device=device)
        label = torch.tensor([1, 255], device=device)
        matrix = ops.confusion_matrix(prediction, label, 2, 2, 255)
        assert matrix.tolist() == [[0, 0], [1, 0]]
