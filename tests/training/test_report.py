"""What a run says while it trains."""

import errno
import json
import re
import threading

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from densesiam import cli
from densesiam.training import report
from tests.training.support import command, state
from tests.transfer.support import error


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a batch begins, and only then."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    start = report.RunReport.on_train_batch_start

    def batch_start(self, *args):
        clock.now += 40
        start(self, *args)

    monkeypatch.setattr(report.RunReport, "on_train_batch_start", batch_start)
    return clock


def test_lines_come_by_the_clock_and_know_the_time_left(clock, tmp_path, capsys):
    args = command("fit", tmp_path)  # two epochs of four batches
    assert cli.main(args) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " batch " in line]
    places = [re.match(r"epoch (\d)/2  batch (\d)/4  ", line).groups() for line in lines]
    assert places == [("1", "2"), ("2", "1"), ("2", "3")]
    assert re.search(r"loss \d+\.\d{3}  sim .*  0 images/s  0:04:00 left$", lines[0])
    assert [line.split("  ")[-1] for line in lines[1:]] == ["0:02:00 left", "0:00:40 left"]
    # A run that goes on knows its own speed only.
    args += ["--trainer.max_epochs", "3"]
    assert cli.main(args) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " batch " in line]
    assert lines[0].startswith("epoch 3/3  batch 2/4")
    assert lines[0].endswith("0:01:20 left")
    epochs = json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_the_bar_fits_any_width(columns):
    line = tqdm.format_meter(
        1,
        2,
        1.0,
        ncols=columns,
        prefix="epoch 1/2, batch: ",
        bar_format=report._BAR,
        postfix="left=0:01:10, images/s=23, loss=2.150, sim=1.160",
    )
    assert len(line) == columns
    assert "epoch 1/2, batch: 1/2, left=" in line
    assert ("sim=1.160" in line) == (columns > 80)


def test_a_full_disk_is_told_by_its_first_error_and_the_logs_have_a_name(
    tmp_path, capsys, monkeypatch
):
    args = command("fit", tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "the disk is full")

    record, count = RecordWriter.write, []

    def write_record(self, data):
        count.append(data)
        return full() if len(count) > 4 else record(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", write_record)  # called in a thread
        patch.setattr(threading, "excepthook", lambda _: None)
        write = report.write_json
        patch.setattr(
            report,
            "write_json",
            lambda path, content: full() if content["state"] == "failed" else write(path, content),
        )
        assert f"cannot write {tmp_path / 'run' / 'logs'}: the disk is full" in error(capsys, *args)
    assert state(tmp_path / "run") == "running"  # as far as could be written
    assert cli.main(args) == 0
    # A kill after the last checkpoint leaves a run that is complete.
    summary = tmp_path / "run" / "summary.json"
    content = json.loads(summary.read_text())
    summary.write_text(json.dumps({**content, "state": "running"}))
    assert cli.main(args) == 0
    assert json.loads(summary.read_text()) == content
