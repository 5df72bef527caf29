import csv
import random
from dataclasses import replace

import pytest

from benchmarks import goals, report, tables
from benchmarks.__main__ import main
from benchmarks.measure import Timing
from benchmarks.results import Results
from benchmarks.terminal import render

from ..browser import needs_browser, open_page
from .synthetic import results, row

STEP = {
    "a network": {
        "cpu": {"ms": {"median": 9.0, "low": 8.0, "high": 10.0}, "operators": {"aten::mm": 4.0}}
    }
}

HOST = {
    "torchvision roi_align": {"forward": {"median": 13.0, "low": 12.0, "high": 14.0}},
    "label_map": {"forward": {"median": 26.0, "low": 24.0, "high": 28.0}},
}


@pytest.fixture
def result():
    rng = random.Random(0)
    rows = [
        row(rng),
        row(rng, layout="channels_last"),
        row(rng, "pixel_similarity", "cosine 128", shape="8x128x80x80"),
        row(rng, "segmentation", "before RegionSim", shape="8x128x80x80"),
        *(row(rng, group="batch", x=x, shape=f"{x}x128x80x80") for x in (1, 2, 4)),
        *(row(rng, group="threads", x=x, threads=x) for x in (1, 2)),
        row(rng, group="types", dtype="float16", wrong_peers={"compile": "cannot: <half>"}),
        row(rng, group="shapes", name="odd"),
    ]
    return results(rows, steps=STEP, host=HOST)


def test_results_survive_their_file(result, tmp_path):
    path = tmp_path / "result.json"
    result.write(path)
    assert Results.read(path) == result


def test_csv_has_a_line_for_each_row_candidate_and_pass(result, tmp_path):
    path = tmp_path / "result.csv"
    result.write_csv(path)
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(result.rows) * 5 * 2
    first = next(line for line in lines if line["candidate"] == "cpu" and "+" in line["pass"])
    assert float(first["median_ms"]) == pytest.approx(
        result.rows[0].milliseconds["cpu"].median, abs=1e-4
    )
    assert {line["compile_seconds"] for line in lines if line["candidate"] == "eager"} == {""}


@needs_browser
def test_page_in_a_browser(result, tmp_path):
    path = tmp_path / "index.html"
    report.write_report(result, path)
    seen = open_page(path, tmp_path)
    assert seen.wrong == []
    assert seen.requests == []
    assert seen.overflow <= 0
    assert len(seen.images) == 4  # speed-ups, shares, batch, threads
    assert all(natural > 800 for natural, _, _ in seen.images)
    assert "a prediction, not a measurement" in seen.text
    assert "Example processor" in seen.text
    assert "python -m benchmarks --full" in seen.text


def test_page_of_a_single_row(tmp_path):
    lone = replace(row(), forward_milliseconds={}, parts={}, extra_bytes={})
    report.write_report(results([lone]), tmp_path / "index.html")
    assert "overlap_sample" in (tmp_path / "index.html").read_text()


def test_filling_a_document(result):
    text = (
        "before\n<!-- table: own -->\nold\n<!-- end -->\nafter\n"
        "<!-- table: machine -->\n<!-- end -->\n"
    )
    filled = report.fill(text, result)
    assert "old" not in filled
    assert filled.startswith("before\n<!-- table: own -->\n| operation | shape | layout |")
    assert "\n<!-- end -->\nafter\n" in filled
    assert "| device | Example processor |" in filled
    assert report.fill(filled, result) == filled


def test_filling_asks_for_a_table_that_is_not_there(result, tmp_path, capsys):
    document = tmp_path / "doc.md"
    document.write_text("<!-- table: side -->\n<!-- end -->\n")
    result.write(tmp_path / "result.json")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "result.json"), "--into", str(document)])
    assert "there is no table 'side'" in capsys.readouterr().err
    assert document.read_text() == "<!-- table: side -->\n<!-- end -->\n"


def test_report_command(result, tmp_path, capsys):
    result.write(tmp_path / "result.json")
    assert main(["report", str(tmp_path / "result.json"), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "| label_map | 26 (24-28) | 2.00x | - | - | - | 2.00x, asked 1.5x |\n" in out
    for name in ("own", "goals", "composites", "steps", "host", "types", "batch"):
        assert f"## {report.TITLES[name]}\n" in out
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "result.json")])
    assert "say what to write" in capsys.readouterr().err


def exact(**milliseconds):
    return {who: Timing(ms, ms, ms) for who, ms in milliseconds.items()}


def test_goals_that_are_met_and_missed():
    times = exact(cpu=10, eager=60, compile=40, clone=3)
    one = replace(row(), milliseconds=times, extra_bytes={"cpu": 100_000, "eager": 800_000})
    assert goals.unmet(one, "cpu") == [
        "4.00x compile, asked 5x",
        "30% of the ceiling, asked 40%",
        "0.1 MB where eager takes 0.8, asked 0x",
    ]
    good = replace(
        one, milliseconds=exact(cpu=10, eager=60, compile=60, clone=5), extra_bytes={"cpu": 8}
    )
    assert goals.unmet(good, "cpu") == []
    assert goals.unmet(replace(one, group="shapes"), "cpu") == []
    assert "MISSED 4.00x compile" in render(one)


def test_goal_of_everything_after_the_encoder():
    one = replace(
        row(op="segmentation"),
        milliseconds=exact(cpu=10, release=19),
        extra_bytes={"cpu": 60, "release": 100_000},
    )
    assert goals.unmet(one, "cpu") == ["1.90x release, asked 2x"]


def test_ratios_are_theirs_over_ours():
    table = tables.measurements([replace(row(), milliseconds=exact(cpu=2, eager=10, clone=1))])
    values = dict(zip(table.columns, table.rows[0], strict=True))
    assert values["eager"] == "5.0x"
    assert values["of clone"] == "50%"


def test_a_refused_backend_is_shown():
    refused = replace(row(), milliseconds=exact(eager=1, clone=1), refused={"cpu": "wrong by 1e-2"})
    assert render(refused).endswith("wrong by 1e-2: not timed")
