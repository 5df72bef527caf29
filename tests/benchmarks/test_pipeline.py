"""The benchmark of reading runs at small sizes, and says who is how much slower."""

import json

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import pipeline


def test_every_reader_is_timed_on_every_case(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "SIZES", {"12 Mpx": (400, 300), "1 Mpx": (150, 120)})
    result = tmp_path / "pipeline.json"
    words = ["pipeline", "--rounds", "1", "--files", "1", "--json", str(result)]
    assert benchmarks.main(words) == 0
    figures = json.loads(result.read_text())["ms"]
    assert list(figures) == list(pipeline.CASES)
    for row in figures.values():
        assert {"ours, reduced", "ours, full", "torchvision, images"} < set(row)
        assert all(each["median"] > 0 for each in row.values())
    assert "| 1 Mpx, two crops of 128 |" in capsys.readouterr().out


def test_the_views_are_as_large_as_the_peers(tmp_path):
    (path,) = pipeline.make_files(tmp_path, (150, 120), 1)
    _, size, views = pipeline.CASES["1 Mpx, two crops of 128"]
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
