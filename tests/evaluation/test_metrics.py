import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import accuracy_score, jaccard_score

from densesiam import ops
from densesiam.data import ClassTable, EvaluationSampler, LabelledFiles
from densesiam.evaluation import ClusterMetrics, match_clusters, reorder_clusters
from tests.data.support import noise
from tests.tolerance import about, assert_close


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
    assert_close(result["iou"], torch.from_numpy(iou), terms=1)  # a quotient of counts
    assert float(result["miou"]) == about(iou.mean(), terms=1)  # float32 scalar
    assert float(result["accuracy"]) == about(accuracy_score(truth, found), terms=1)


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
        ({"matching": "greedy"}, "hungarian, majority, got 'greedy'"),
        ({"assignment": [0, 1]}, "each of the 3 clusters a class from 0 to 2, or -1"),
        ({"assignment": [0, 1, 3]}, "each of the 3 clusters a class from 0 to 2, or -1"),
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


# Many clusters for one class


@pytest.mark.parametrize("seed", range(5))
def test_majority_is_the_best_of_all_many_to_one_matchings(seed):
    confusion = np.random.default_rng(seed).integers(0, 50, (3, 5))
    assignment = match_clusters(confusion, "majority")
    agreed = confusion[assignment, range(5)].sum()
    every = itertools.product(range(3), repeat=5)
    assert agreed == max(confusion[list(choice), range(5)].sum() for choice in every)


def test_ties_and_empty_clusters_by_majority():
    assert match_clusters(np.array([[3, 0, 1], [3, 0, 2]]), "majority").tolist() == [0, -1, 1]


def test_over_clustering_is_scored_many_to_one():
    confusion = [[40, 30, 20, 0, 5], [0, 0, 10, 60, 35]]
    result = metrics_of(confusion, matching="majority").compute()
    assert result["assignment"].tolist() == [0, 0, 0, 1, 1]
    assert result["iou"].tolist() == [90 / 105, 95 / 110]
    assert float(result["accuracy"]) == pytest.approx(185 / 200)
    # One to one, three of the five clusters stand for nothing.
    result = metrics_of(confusion).compute()
    assert float(result["accuracy"]) == pytest.approx(100 / 200)
    matched = reorder_clusters(np.array(confusion), np.array([0, 0, -1, 1, -1]))
    assert matched.tolist() == [[70, 0, 25], [0, 60, 45]]


def test_table_lists_the_clusters_of_each_class():
    confusion = np.zeros((3, 30), dtype=int)
    confusion[0, :2] = confusion[1, 10:] = 5
    lines = metrics_of(confusion, matching="majority").table().splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["0,1", "10,+19", "-"]


# A matching from elsewhere


def test_a_matching_learned_elsewhere_is_taken_as_it_is():
    confusion = [[1, 9], [8, 2]]
    result = metrics_of(confusion, assignment=[0, 1]).compute()
    assert result["assignment"].tolist() == [0, 1]
    assert float(result["accuracy"]) == pytest.approx(3 / 20)
    assert float(metrics_of(confusion).compute()["accuracy"]) == pytest.approx(17 / 20)
    result = metrics_of(confusion, assignment=[0, -1]).compute()
    assert float(result["accuracy"]) == pytest.approx(1 / 20)


# The release's own scores


def as_released(confusion, num_things):
    """Scores of things and of stuff, step by step as the authors' release comes to them."""
    size = len(confusion)
    best = max(
        itertools.permutations(range(size)),
        key=lambda columns: sum(confusion[c][k] for c, k in enumerate(columns)),
    )
    table = np.zeros((size, size))
    for true_class, cluster in enumerate(best):
        table[cluster] = confusion[true_class]
    scores = []
    for part in (slice(num_things), slice(num_things, None)):
        block = table[part, part]
        hits = np.diag(block)
        scores.append(np.nanmean(hits / (block.sum(0) + block.sum(1) - hits)))
        scores.append(hits.sum() / block.sum())
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_legacy_scores_are_the_releases(seed):
    confusion = np.random.default_rng(seed).integers(1, 1000, (5, 5))
    result = metrics_of(confusion, things=[0, 1], legacy=True).compute()
    ours = [
        float(result[f"legacy_{group}_{name}"])
        for group in ("things", "stuff")
        for name in ("miou", "accuracy")
    ]
    assert ours == pytest.approx(as_released(confusion, 2))


def test_legacy_scores_are_right_only_where_clusters_come_in_class_order():
    confusion = np.diag([50, 40, 30, 20]) + 1
    result = metrics_of(confusion, things=[0, 1], legacy=True).compute()
    assert float(result["legacy_things_miou"]) == pytest.approx(float(result["things_miou"]))
    result = metrics_of(confusion[:, ::-1].copy(), things=[0, 1], legacy=True).compute()
    assert float(result["legacy_things_miou"]) == pytest.approx(float(result["stuff_miou"]))


def test_legacy_scores_are_marked_in_the_table():
    metrics = metrics_of(np.diag([5, 5, 5]) + 1, things=[0], legacy=True)
    assert [line.split()[:2] for line in metrics.table().splitlines()[-2:]] == [
        ["things", "(legacy)"],
        ["stuff", "(legacy)"],
    ]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"things": [1]},
        {"things": None},
        {"things": [0], "num_clusters": 4},
        {"things": [0], "matching": "majority"},
        {"things": [0], "assignment": [0, 1, 2]},
    ],
)
def test_legacy_scores_that_do_not_exist(kwargs):
    with pytest.raises(ValueError, match="legacy"):
        ClusterMetrics(**{"num_clusters": 3, "num_classes": 3, "legacy": True, **kwargs})


# Image by image, and over several processes


def test_counts_of_each_image_of_the_last_batch(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    metrics = ClusterMetrics(3, 4)
    assert metrics.image_counts.shape == (0, 4, 3)
    for size in (2, 3):
        logits = torch.randn(size, 3, 4, 4, generator=generator)
        labels = torch.randint(4, (size, 9, 7), generator=generator)
        labels[-1, :5] = 255  # void
        metrics.update(logits, labels)
    counts = metrics.image_counts
    assert counts.shape == (3, 4, 3)
    for i in range(3):
        alone = ClusterMetrics(3, 4)
        alone.update(logits[i : i + 1], labels[i : i + 1])
        assert torch.equal(counts[i], alone.confusion)

    calls = []
    count = ops.confusion_matrix
    monkeypatch.setattr(ops, "confusion_matrix", lambda *args: calls.append(1) or count(*args))
    metrics.update(logits, labels)
    assert len(calls) == 1  # for all images


def labelled_files(folder, count):
    """Images, and labels whose class counts differ from image to image."""
    paths = []
    for i in range(count):
        image, label = folder / f"{i}.png", folder / f"{i}-label.png"
        noise(8, 6, seed=i).save(image)
        noise(8, 6, seed=50 + i).getchannel(0).point(lambda v: v % 3).save(label)
        paths.append((image, label))
    return LabelledFiles(paths, ClassTable(["a", "b", "c"]))


def evaluate_part(data, rank, world_size):
    metrics = ClusterMetrics(3, 3)
    for draw in EvaluationSampler(len(data), world_size, rank):
        item = data[draw]
        metrics.update(item["image"][None], item["label"][None])
    return metrics


def evaluate_in_two(rank, data, folder):
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(evaluate_part(data, rank, 2).compute(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def other_process(_, data, folder):
    evaluate_in_two(1, data, folder)


def test_two_processes_count_every_image_once(tmp_path):
    data = labelled_files(tmp_path, 5)  # does not divide by two: one image comes twice
    other = mp.start_processes(
        other_process, (data, tmp_path), nprocs=1, join=False, start_method="spawn"
    )
    evaluate_in_two(0, data, tmp_path)
    while not other.join():
        pass
    whole = evaluate_part(data, 0, 1).compute()
    assert int(whole["confusion"].sum()) == 5 * 48
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result.keys() == whole.keys()
        assert all(torch.equal(result[name], whole[name]) for name in whole)
