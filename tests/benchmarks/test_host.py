import json

import torch

from benchmarks import host, ops
from benchmarks.__main__ import main
from benchmarks.results import Results


def timing(median):
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median}


TIMES = {
    host.YARDSTICK: {"forward": timing(10.0), "both": timing(100.0)},
    "overlap_sample": {"forward": timing(16.0), "both": timing(90.0)},
    "pixel_similarity": {"forward": timing(16.0), "both": timing(101.0), "graph": timing(6.0)},
    "label_map": {"forward": timing(15.0)},
}


def test_times_are_held_against_the_yardstick():
    own = [dict(zip(host.COLUMNS, line, strict=True)) for line in host.lines(TIMES)]
    assert [line["goals"] for line in own] == [
        "-",
        "1.60x, asked 1.5x",
        "1.01x, asked 1x",
        "met",
    ]
    assert [line["of roi_align"] for line in own] == ["-", "1.60x", "1.60x", "1.50x"]
    assert [line["graph, us"] for line in own] == ["-", "-", "6 (5-7)", "-"]
    assert own[3]["with backward, us"] == "-"
    table = host.render(TIMES).splitlines()
    assert table[2].split("  ")[0] == "overlap_sample"
    assert {line[table[0].index("goals") - 1] for line in table} == {" "}


def test_every_operation_is_measured_by_one_thread(monkeypatch):
    threads = set()
    original = host._calls

    def watched(problem):
        forward, both = original(problem)
        return lambda: (threads.add(torch.get_num_threads()), forward()), both

    monkeypatch.setattr(host, "_calls", watched)
    monkeypatch.setattr(host, "CALLS", 1)
    before = torch.get_num_threads()
    times = host.measure(list(ops.MODULES), rounds=1)
    assert torch.get_num_threads() == before
    assert threads == {1}
    assert list(times) == [host.YARDSTICK, *ops.MODULES]
    assert {name for name, own in times.items() if "both" not in own} == {
        "label_map",
        "confusion_matrix",
    }
    assert all(own["forward"]["median"] > 0 for own in times.values())


def test_what_a_gpu_takes_stands_beside_it(gpu, monkeypatch):
    monkeypatch.setattr(host, "CALLS", 1)
    times = host.measure(["pixel_similarity"], rounds=1)
    assert all(own["graph"]["median"] > 0 for own in times.values())

    monkeypatch.setattr(
        host, "_yardstick", lambda: (lambda: torch.ones((), device=gpu.device).item(), None)
    )
    times = host.measure(["pixel_similarity"], rounds=1)
    assert [name for name, own in times.items() if "graph" in own] == ["pixel_similarity"]


def test_commands_print_and_write_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(host, "CALLS", 1)
    path = tmp_path / "host.json"
    assert main(["host", "--rounds", "1", "--json", str(path)]) == 0
    assert set(json.loads(path.read_text())["host"]) == {host.YARDSTICK, *ops.MODULES}
    assert "of roi_align" in capsys.readouterr().out

    path = tmp_path / "result.json"
    command = ["--quick", "--batch", "1", "--rounds", "1", "--ops", "confusion_matrix"]
    assert main([*command, "--json", str(path)]) == 0
    assert list(Results.read(path).host) == [host.YARDSTICK, "confusion_matrix"]
    assert "of roi_align" in capsys.readouterr().out
