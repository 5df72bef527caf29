"""The benchmark of the pipeline runs at small sizes, and says who is how much slower."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as benchmarks
from benchmarks import evaluating, pipeline, predicting, stepping
from densesiam.cli.predict import predict
from densesiam.methods import DenseSiamSegmentation
from tests.cli.predicting import MODEL, save_photo, save_segmenter


def test_everything_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "SIZES", {"12 Mpx": (400, 300), "1 Mpx": (150, 120)})
    monkeypatch.setattr(stepping, "SIMSIAM", 32)
    monkeypatch.setattr(stepping, "SEGMENTATION", 32)
    monkeypatch.setattr(evaluating, "LABELS", 32)
    monkeypatch.setattr(stepping, "FIT", 32)
    monkeypatch.setattr(stepping, "SHORTER", 40)
    monkeypatch.setattr(predicting, "SIDE", 64)
    for module in (stepping, predicting):
        monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    small = DenseSiamSegmentation(**{**MODEL, "num_classes": predicting.CATEGORIES}, region_start=0)
    monkeypatch.setattr(predicting, "network", lambda files: small.eval())
    paper = DenseSiamSegmentation(**MODEL, region_start=0)
    monkeypatch.setattr(stepping, "paper_model", lambda: paper)
    result = tmp_path / "pipeline.json"
    words = ["pipeline", "--rounds", "1", "--files", "2", "--json", str(result)]
    assert benchmarks.main(words) == 0
    figures = json.loads(result.read_text())["ms"]
    assert tuple(figures) == pipeline.CASES
    for name in pipeline.VIEWS:
        assert {"ours, reduced", "ours, full", "torchvision, images"} < set(figures[name])
    assert {"ours", "torchmetrics"} < set(figures["evaluate, 27 classes at 320 px"])
    assert list(figures["write, 1 Mpx"]) == ["ours", "Pillow", "torchvision"]
    assert {"ours", "plain loop"} < set(figures["predict, 1 Mpx"])
    step = figures["step, segmentation R18-FPN at 160 px"]
    assert list(step) == ["ours", "ours, bfloat16", "plain PyTorch"]
    # Maps are half as large; weights and their gradients are not.
    assert 0.4 < step["ours, bfloat16"]["extra_mb"] / step["ours"]["extra_mb"] < 1
    for name in ("fit, 12 Mpx, folder.yaml", "fit, the demo"):
        of_fit = ["ours, bfloat16", "ours", "as it was, bfloat16", "as it was"]
        assert list(figures[name]) == of_fit
    assert all(each["median"] > 0 for row in figures.values() for each in row.values())
    out = capsys.readouterr().out
    assert "| 1 Mpx, two crops of 128 |" in out
    assert "| ms an image | ours | Pillow | torchvision |" in out


def test_the_plain_loop_gives_the_labels_that_predict_gives(tmp_path, monkeypatch, capsys):
    """Else their times could not be compared."""
    photos = tmp_path / "photos"
    for i in range(2):
        save_photo(photos / f"{i}.png", 90, 60, seed=i)
    checkpoint = save_segmenter(tmp_path / "last.ckpt")
    predict(checkpoint, [str(photos)], str(tmp_path / "ours"))
    words = [str(checkpoint), str(photos), str(tmp_path / "plain")]
    monkeypatch.setattr("sys.argv", ["predicting", *words])
    predicting.main()
    for i in range(2):
        found, expected = (
            np.asarray(Image.open(folder / f"{i}.png"))
            for folder in (tmp_path / "ours" / "labels", tmp_path / "plain")
        )
        assert len(np.unique(expected)) > 1
        # Rounding decides where two logits are equal to the last digits: in no pixel here.
        assert np.array_equal(found, expected)
        assert (tmp_path / "plain" / f"{i}.jpg").is_file()


def test_all_count_the_same_pixels():
    """Else their times could not be compared."""
    tables = []
    logits, labels = evaluating.make_image(0)
    for count, table in evaluating.counters().values():
        count(logits, labels)
        tables.append(table())
    known = int((labels != evaluating.VOID).sum())
    assert 0.8 < known / labels.numel() < 0.95
    for table in tables:
        assert table.sum() == known
        # A pixel whose two greatest logits are equal to the last digits goes either way.
        assert (table - tables[0]).abs().sum() <= 2 * 1e-4 * known


def test_the_views_are_as_large_as_the_peers(tmp_path):
    (path,) = pipeline.make_files(tmp_path, (150, 120), 1)
    _, size, views = pipeline.VIEWS["1 Mpx, two crops of 128"]
    read = {"ours": pipeline.ours(views("reduced"), [path]), **pipeline.peers(size)}
    sample = read.pop("ours")(path, 0)
    expected = sample["view1"].shape
    for each in read.values():
        assert [tuple(view.squeeze(0).shape) for view in each(path, 0)] == [tuple(expected)] * 2


def test_ratios(capsys):
    row = {"ours, reduced": {"median": 10.0}, "other": {"median": 25.0}}
    assert "| a | 10.0 (1.00x) | 25.0 (2.50x) |" in pipeline.render({"a": row})


def test_unknown_cases_are_named(capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["2 Mpx"])
    assert "2 Mpx: expected some of 12 Mpx, folder.yaml" in capsys.readouterr().err
