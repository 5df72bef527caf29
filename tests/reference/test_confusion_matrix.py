import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from densesiam.reference import confusion_matrix

from .support import properties, seeds


@properties
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.sampled_from([255, -1]),
    seeds,
)
def test_equals_scikit_learn(num_predictions, num_classes, shape, ignore_index, seed):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(num_predictions, shape, generator=generator)
    label = torch.randint(num_classes, shape, generator=generator)
    label[torch.rand(shape, generator=generator) < 0.3] = ignore_index
    matrix = confusion_matrix(prediction, label, num_predictions, num_classes, ignore_index)
    assert matrix.dtype == torch.int64
    assert matrix.shape == (num_classes, num_predictions)

    kept = label != ignore_index
    expected = torch.zeros(num_classes, num_predictions, dtype=torch.int64)
    if kept.any():
        size = max(num_classes, num_predictions, 2)  # scikit-learn's is square, and dislikes 1
        square = sklearn.metrics.confusion_matrix(
            label[kept].numpy(), prediction[kept].numpy(), labels=range(size)
        )
        expected = torch.from_numpy(square)[:num_classes, :num_predictions]
    assert torch.equal(matrix, expected)


def test_rows_are_true_classes():
    prediction, label = torch.tensor([2, 2, 0]), torch.tensor([1, 1, 0])
    assert confusion_matrix(prediction, label, 3, 2, 255).tolist() == [[1, 0, 0], [0, 0, 2]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_types(dtype):
    # In uint8, 200 x 200 + 150 would wrap round.
    prediction, label = torch.tensor([150, 7]).to(dtype), torch.tensor([200, 255]).to(dtype)
    matrix = confusion_matrix(prediction, label, 200, 210, 255)
    assert matrix[200, 150] == matrix.sum() == 1


def test_ignore_index_within_the_classes_is_dropped():
    label = torch.tensor([0, 1, 0])
    assert confusion_matrix(label, label, 2, 2, ignore_index=0).tolist() == [[0, 0], [0, 1]]


def test_prediction_of_an_ignored_pixel_is_not_looked_at():
    prediction, label = torch.tensor([-7, 99, 1]), torch.tensor([255, 255, 1])
    assert confusion_matrix(prediction, label, 2, 2, 255).sum() == 1


out_of_range = pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([0, 1], [0, 3], r"every label must be in \[0, 3\), got \[3\]"),
        ([0, 1], [-2, 1], r"every label must be in \[0, 3\), got \[-2\]"),
        ([0, 2], [0, 1], r"every prediction must be in \[0, 2\), got \[2\]"),
        ([-1, 0], [0, 1], r"every prediction must be in \[0, 2\), got \[-1\]"),
    ],
)


@out_of_range
def test_out_of_range_raises_on_the_cpu(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(prediction), torch.tensor(label), 2, 3, 255)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the reference looks at the device")
@out_of_range
def test_out_of_range_is_dropped_on_a_gpu(prediction, label, message):
    matrix = confusion_matrix(
        torch.tensor(prediction).cuda(), torch.tensor(label).cuda(), 2, 3, 255
    )
    assert matrix.sum() == 1


def test_traced_as_one_graph_it_still_checks_values():
    compiled = torch.compile(confusion_matrix, fullgraph=True, backend="aot_eager")
    label = torch.tensor([0, 1, 255, 2])
    prediction = torch.tensor([1, 1, 0, 0])
    expected = confusion_matrix(prediction, label, 2, 3, 255)
    assert torch.equal(compiled(prediction, label, 2, 3, 255), expected)
    with pytest.raises(RuntimeError, match="every label must be in"):
        compiled(prediction, label + 1, 2, 3, 255)
