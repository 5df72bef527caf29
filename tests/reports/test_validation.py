import csv

import numpy as np
import pytest
import torch
from PIL import Image

from densesiam.data.sets.classes import ClassTable, known_table
from densesiam.evaluation.metrics import ClusterMetrics
from densesiam.evaluation.ranking import rank_images
from densesiam.reports import validation
from densesiam.reports.validation import Example, ValidationReport, read_matching
from densesiam.reports.visualize import heat_map
from tests.browser import needs_browser, open_page

PROTOCOL = {"data": "three <images>", "matching": "Hungarian, on these very labels"}


def example(name, seed, classes):
    rng = np.random.default_rng(seed)
    truth = np.sort(rng.integers(classes, size=(30, 40)), axis=1)
    truth[:4] = 255
    photo = Image.fromarray(rng.integers(0, 255, (15, 20, 3), dtype=np.uint8))
    prediction = np.where(rng.random((30, 40)) < 0.8, np.where(truth == 255, 0, truth), classes)
    return Example(name, photo, prediction, truth, 0.5, 0.75)


def report(confusion, classes, protocol=PROTOCOL, **kwargs):
    confusion = torch.as_tensor(confusion)
    metrics = ClusterMetrics(
        confusion.shape[1], len(classes.names), 255, classes.names, classes.thing_classes, **kwargs
    )
    metrics.confusion += confusion
    metrics._update_count = 1
    count = len(classes.names)
    best = [example("a.jpg", 0, count), example("b.jpg", 1, count)]
    worst = [example("sub <c>.png", 2, count)]
    return ValidationReport(metrics.compute(), metrics.table(), classes, 255, protocol, best, worst)


TABLE = ClassTable(["cat & dog", "car", "road", "sky"], things=["cat & dog", "car"])
COUNTS = np.array([[0, 80, 5, 15, 0], [60, 0, 0, 0, 0], [10, 0, 90, 0, 20], [0, 0, 0, 0, 0]])


def test_a_report_is_complete_on_its_own(tmp_path):
    report(COUNTS, TABLE).write(tmp_path)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert names == [
        "confusion.png",
        "images/best-1-a.jpg",
        "images/best-2-b.jpg",
        "images/worst-1-sub <c>.jpg",
        "legend.png",
        "report.html",
        "scores.csv",
        "scores.txt",
    ]
    text = (tmp_path / "scores.txt").read_text()
    assert "matching  Hungarian, on these very labels" in text
    assert "legacy" not in text
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*TABLE.names, "all", "things", "stuff"]
    assert rows[0] == {
        "class": "cat & dog",
        "kind": "thing",
        "clusters": "1",
        "pixel_share": f"{100 / 280:.6f}",
        "iou": "0.800000",
        "accuracy": "0.800000",
    }
    assert rows[3]["iou"] == "0.000000"  # nothing is sky, but cluster 3 or 4 is called so
    assert rows[4]["kind"] == "group"


def test_the_picture_of_confusions_has_a_row_for_each_true_class(monkeypatch, tmp_path):
    drawn = []

    def draw(shares, *names):
        drawn.append((shares, *names))
        return heat_map(shares, *names)

    monkeypatch.setattr(validation, "heat_map", draw)
    report(COUNTS, TABLE).write(tmp_path)
    [(shares, rows, columns, row_title, column_title)] = drawn
    assert (list(rows), row_title) == (TABLE.names, "true class")
    assert (list(columns), column_title) == ([*TABLE.names, "no class"], "predicted class")
    # Cluster 1 is called cat & dog, 0 car, 2 road, 3 sky; 4 matches nothing. Rows add up to 1.
    assert shares[:3].tolist() == [
        [0.8, 0, 0.05, 0.15, 0],
        [0, 1, 0, 0, 0],
        [0, 10 / 120, 90 / 120, 0, 20 / 120],
    ]
    assert np.isnan(shares[3]).all()  # no pixel is sky


def test_legacy_scores_are_marked_wherever_they_stand(tmp_path):
    written = report(COUNTS[:, :4], TABLE, legacy=True)
    written.write(tmp_path)
    text = (tmp_path / "scores.txt").read_text()
    assert text.count("(legacy)") == 3
    assert "They are wrong" in text
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[-2:]] == ["things (legacy)", "stuff (legacy)"]
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Legacy scores</h2>" in page
    assert "They are wrong" in page


def test_a_stored_matching_is_read_back(tmp_path):
    from densesiam._writing import write_json

    path = tmp_path / "scores.json"
    write_json(path, report(COUNTS, TABLE).content())
    assignment, names, learned = read_matching(path, 5, TABLE.names)
    assert names == list(TABLE.names)
    assert read_matching(path, 5) == (assignment, names, learned)
    assert sorted(assignment) == [-1, 0, 1, 2, 3]
    assert assignment[:3] == [1, 0, 2]
    assert learned == "Hungarian, on these very labels, on three <images>"
    with pytest.raises(ValueError, match="is for 5 clusters, the model has 6"):
        read_matching(path, 6, TABLE.names)
    with pytest.raises(ValueError, match=r"other classes \(cat & dog, .*\) than the labels have"):
        read_matching(path, 5, ["cat"])
    with pytest.raises(FileNotFoundError, match='expected "hungarian", "majority", or the'):
        read_matching(tmp_path / "greedy", 5, TABLE.names)
    with pytest.raises(FileNotFoundError, match=r"greedy: expected the scores\.json"):
        read_matching(tmp_path / "greedy", 5)
    for wrong in ("{}", "[]", "not JSON"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="holds no matching"):
            read_matching(path, 5, TABLE.names)


def test_images_are_ranked_under_the_matching_of_the_set():
    counts = {
        0: np.array([[5, 5], [0, 0]]),
        1: np.array([[0, 10], [4, 0]]),
        2: np.array([[0, 0], [0, 0]]),  # void all over
        3: np.array([[10, 0], [0, 4]]),
    }
    ranked = rank_images(counts, np.array([1, 0]))
    assert [image.index for image in ranked] == [1, 0, 3]
    assert [image.miou for image in ranked] == [1, 0.25, 0]
    assert [image.accuracy for image in ranked] == [1, 0.5, 0]


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_the_whole_report(tmp_path, width):
    report(COUNTS, TABLE).write(tmp_path)
    seen = open_page(tmp_path / "report.html", tmp_path, width=width)
    assert seen.wrong == []
    assert seen.requests == []
    assert len(seen.images) == 1 + 3 * 3
    assert all(image[0] > 0 and image[2] > 0 for image in seen.images)
    assert seen.overflow <= 0
    for text in ("three <images>", "cat & dog", "all stuff", "sub <c>.png: mIoU 50.0"):
        assert text in seen.text


def test_many_classes_and_clusters(tmp_path):
    table = known_table("coco_stuff27")
    confusion = np.random.default_rng(0).integers(0, 1000, (27, 128))
    written = report(confusion, table, matching="majority")
    written.write(tmp_path)
    clusters = [row[2].split() for row in written._rows()]
    assert sorted(int(k) for row in clusters for k in row) == list(range(128))
