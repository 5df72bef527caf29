import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from densesiam.evaluation import ClusterMetrics, match_clusters, reorder_clusters


def metrics_of(confusion, **kwargs):
    """A metric that has seen the given class-by-cluster pixel counts."""
    confusion = torch.as_tensor(confusion)
    metrics = ClusterMetrics(confusion.shape[1], confusion.shape[0], **kwargs)
    metrics.confusion += confusion
    metrics._update_count = 1
    return metrics


def one_hot_logits(prediction, num_clusters):
    return torch.nn.functional.one_hot(prediction, num_clusters).permute(0, 3, 1, 2).float()


def best_agreement(confusion):
    """Most pixels any one-to-one assignment can get right, by trying every one."""
    if confusion.shape[0] > confusion.shape[1]:
        confusion = confusion.T
    rows, columns = confusion.shape
    return max(
        sum(confusion[r, c] for r, c in zip(range(rows), choice, strict=True))
        for choice in itertools.permutations(range(columns), rows)
    )


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_matching_is_the_best_of_all_permutations(shape, seed):
    confusion = np.random.default_rng(seed).integers(0, 50, shape)
    assignment = match_clusters(confusion)
    used = assignment[assignment >= 0]
    assert len(set(used)) == len(used) == min(shape)
    agreed = sum(confusion[c, k] for k, c in enumerate(assignment) if c >= 0)
    assert agreed == best_agreement(confusion)


@pytest.mark.parametrize("num_clusters", [4, 6, 9])
def test_scores_equal_scikit_learn(num_clusters):
    generator = torch.Generator().manual_seed(num_clusters)
    labels = torch.randint(6, (2, 12, 10), generator=generator)
    noise = torch.randint(num_clusters, labels.shape, generator=generator)
    keep = torch.rand(labels.shape, generator=generator) < 0.6
    prediction = torch.where(keep, (labels * 5 + 1) % num_clusters, noise)
    labels[:, :2] = 255

    metrics = ClusterMetrics(num_clusters, 6)
    metrics.update(one_hot_logits(prediction, num_clusters), labels)
    result = metrics.compute()

    valid = labels != 255
    truth = labels[valid].numpy()
    # An unmatched cluster (-1) becomes a class 6 that the truth never has.
    found = np.where(result["assignment"] < 0, 6, result["assignment"])[prediction[valid]]
    iou = jaccard_score(truth, found, labels=range(6), average=None)
    np.testing.assert_allclose(result["iou"], iou, rtol=1e-12)  # float64 sums of counts
    assert float(result["miou"]) == pytest.approx(iou.mean(), rel=1e-6)  # float32 scalar
    assert float(result["accuracy"]) == pytest.approx(accuracy_score(truth, found), rel=1e-6)


def test_streaming_and_merging_equal_one_shot():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 4, 4, generator=generator)
    labels = torch.randint(4, (6, 9, 7), generator=generator)
    whole, first, second = (ClusterMetrics(5, 4) for _ in range(3))
    whole.update(logits, labels)
    for i in (4, 0, 2):
        first.update(logits[i : i + 1], labels[i : i + 1])
    second.update(logits[1::2], labels[1::2])
    assert torch.equal(first.confusion + second.confusion, whole.confusion)
    # What torchmetrics does across processes: reduce the states with dist_reduce_fx.
    reduced = first._reductions["confusion"](torch.stack([first.confusion, second.confusion]))
    assert torch.equal(reduced, whole.confusion)
    assert whole.confusion.dtype == torch.int64
    assert int(whole.confusion.sum()) == labels.numel()


def test_things_and_stuff_follow_classes_not_clusters():
    # Two things (0, 1), two stuff (2, 3). Clusters found them almost perfectly, in reverse order.
    confusion = np.array(
        [
            [0, 0, 10, 90],
            [0, 20, 80, 0],
            [30, 70, 0, 0],
            [100, 0, 0, 0],
        ]
    )
    result = metrics_of(confusion, things=[0, 1]).compute()
    assert result["assignment"].tolist() == [3, 2, 1, 0]
    # By hand, on the blocks [[90, 10], [0, 80]] and [[70, 30], [0, 100]].
    assert float(result["things_miou"]) == pytest.approx((90 / 100 + 80 / 90) / 2)
    assert float(result["things_accuracy"]) == pytest.approx(170 / 180)
    assert float(result["stuff_miou"]) == pytest.approx((70 / 100 + 100 / 130) / 2)
    assert float(result["stuff_accuracy"]) == pytest.approx(170 / 200)
    # The same blocks taken in the clusters' order hold other pixels altogether.
    assert confusion[:2, :2].sum() == 20
    assert reorder_clusters(confusion, match_clusters(confusion))[:2, :2].sum() == 180
    # Overall scores see the confusion between the groups too: class 1 lost 20 pixels to class 2.
    assert float(result["iou"][1]) == pytest.approx(80 / (100 + 10))
    assert float(result["accuracy"]) == pytest.approx(340 / 400)


def test_a_thing_never_taken_for_any_thing_scores_zero():
    # Class 1, a thing, lies wholly in the cluster of class 2, which is stuff.
    result = metrics_of([[9, 0, 0], [0, 0, 4], [0, 0, 8]], things=[0, 1]).compute()
    assert result["assignment"].tolist() == [0, 1, 2]
    assert float(result["things_miou"]) == pytest.approx(0.5)
    # A thing that the truth lacks is skipped as ever.
    result = metrics_of([[9, 0, 0], [0, 0, 0], [0, 0, 8]], things=[0, 1]).compute()
    assert float(result["things_miou"]) == pytest.approx(1.0)


def test_absent_class_is_skipped_and_predicted_absent_class_counts_zero():
    skipped = metrics_of([[8, 2, 0], [1, 9, 0], [0, 0, 0]]).compute()
    assert skipped["iou"][2].isnan()
    assert float(skipped["miou"]) == pytest.approx((8 / 11 + 9 / 12) / 2)
    predicted = metrics_of([[8, 2, 3], [1, 9, 0], [0, 0, 0]]).compute()
    assert float(predicted["iou"][2]) == 0
    assert float(predicted["miou"]) == pytest.approx((8 / 14 + 9 / 12) / 3)


def test_unmatched_clusters_are_wrong():
    result = metrics_of([[6, 4, 0], [0, 0, 10]]).compute()
    assert result["assignment"].tolist() == [0, -1, 1]
    assert result["iou"].tolist() == [0.6, 1.0]
    assert float(result["accuracy"]) == pytest.approx(0.8)


def test_unmatched_classes_are_never_predicted():
    result = metrics_of([[6, 0], [4, 0], [0, 9]]).compute()
    assert result["assignment"].tolist() == [0, 2]
    assert result["iou"].tolist() == [0.6, 0.0, 1.0]


def test_void_alone_has_no_score():
    metrics = ClusterMetrics(3, 3)
    metrics.update(torch.randn(1, 3, 4, 4), torch.full((1, 8, 8), 255))
    assert metrics.compute()["miou"].isnan()
    assert metrics.compute()["accuracy"].isnan()


def test_table_has_a_line_for_each_class_and_mean():
    text = metrics_of([[90, 10], [0, 100]], class_names=["cat", "road"], things=[0]).table()
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["class", "cluster", "pixels", "IoU", "accuracy"]
    assert lines[1] == ["cat", "0", "50.0", "90.0", "90.0"]
    assert lines[2] == ["road", "1", "50.0", "90.9", "100.0"]
    assert lines[3] == ["all", "90.5", "95.0"]
    assert [line[0] for line in lines[4:]] == ["things", "stuff"]
    assert metrics_of([[5]]).table().splitlines()[1].split() == [
        "0",
        "0",
        "100.0",
        "100.0",
        "100.0",
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_clusters": 0}, "at least one cluster"),
        ({"class_names": ["a"]}, "1 names for 3 classes"),
        ({"things": [3]}, "from 0 to 2"),
    ],
)
def test_impossible_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClusterMetrics(**{"num_clusters": 3, "num_classes": 3, **kwargs})


def test_wrong_shapes_and_labels():
    metrics = ClusterMetrics(3, 3)
    with pytest.raises(ValueError, match=r"logits must be \(B, 3, h, w\)"):
        metrics.update(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(1, H, W\)"):
        metrics.update(torch.zeros(1, 3, 2, 2), torch.zeros(2, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="7"):
        metrics.update(torch.zeros(1, 3, 2, 2), torch.full((1, 4, 4), 7))
