"""What a visit's tests leave on record, and what its steps ask a GPU: with stand-ins for both."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device
from tests import stand_in
from tools.gpu_kit import environment, recorder, stages


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The file that outcomes go to; it is empty, and so is that of earlier ones."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    for name in ("DENSESIAM_RECORD", "DENSESIAM_RECORDED"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "DENSESIAM_RECORD"


def report(outcome="passed", when="call", longrepr=None):
    return SimpleNamespace(
        nodeid="tests/a.py::b", outcome=outcome, when=when, duration=0.12345, longrepr=longrepr
    )


FAILED = SimpleNamespace(reprcrash=SimpleNamespace(message="assert 1 == 2"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (report(), {"outcome": "passed"}),
        (report("failed", longrepr=FAILED), {"outcome": "failed", "said": "assert 1 == 2"}),
        (report("failed", longrepr="x" * 600), {"outcome": "failed", "said": "x" * 500}),
        (
            report("skipped", "setup", ("a.py", 3, "Skipped: no triton")),
            {"outcome": "skipped, setup", "said": "Skipped: no triton"},
        ),
        (report("failed", "teardown", FAILED), {"outcome": "failed, teardown"}),
        (report(when="setup"), None),
    ],
)
def test_an_outcome_is_a_line_as_it_comes(record, given, told):
    recorder.pytest_runtest_logreport(given)
    lines = record.read_text().splitlines()
    if told is None:
        assert lines == []
    else:
        (line,) = lines
        assert told.items() <= json.loads(line).items()
        assert json.loads(line)["test"] == "tests/a.py::b"


def test_with_xdist_only_the_gathering_process_writes(record, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    recorder.pytest_runtest_logreport(report())
    assert record.read_text() == ""


def test_what_is_on_record_is_not_run_again(record, monkeypatch):
    with open(os.environ["DENSESIAM_RECORDED"], "w") as file:
        file.write("a.py::one\na.py::three")
    items = [SimpleNamespace(nodeid=f"a.py::{name}") for name in ("one", "two", "three")]
    left_out = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    recorder.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
    assert [item.nodeid for item in items] == ["a.py::two"]
    assert [item.nodeid for item in left_out] == ["a.py::one", "a.py::three"]


class Broken(stand_in.StandIn):
    """A GPU that answers no more."""

    def synchronize(self, device=None):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("worker", "gpu", "started", "ends"),
    [
        ("gw0", Broken(), True, [recorder.BROKEN]),
        ("gw0", stand_in.StandIn(), True, []),
        ("gw0", Broken(), False, []),  # this worker has not used it
        ("gw0", None, False, []),
        (None, Broken(), True, []),  # nobody would start another
    ],
)
def test_a_worker_whose_device_is_broken_ends(record, monkeypatch, worker, gpu, started, ends):
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(device, "gpu", gpu)
    recorder.pytest_runtest_teardown()
    assert ended == ends


def test_every_gpu_is_told_of(monkeypatch):
    monkeypatch.setattr(device, "gpu", stand_in.StandIn())
    (gpu,) = environment.gpus()
    assert gpu["capability"] == "9.0"
    assert gpu["name"].startswith("stand-in")
    assert set(gpu) == {"name", "capability", "memory", "multiprocessors", "cache"}
    monkeypatch.setattr(device, "gpu", None)
    assert environment.gpus() == []


def test_a_fact_that_cannot_be_had_says_why(monkeypatch):
    def broken():
        raise OSError("no such thing")

    monkeypatch.setattr(environment, "gpus", broken)
    monkeypatch.setattr(environment, "COMMANDS", {"nvidia-smi": ["no-such-program"]})
    found = environment.facts()
    assert found["gpus"] == "cannot be told: OSError: no such thing"
    assert found["nvidia-smi"].startswith("cannot be told: FileNotFoundError")
    assert isinstance(found["torch"], dict)


def test_a_tool_is_found_beside_the_path(tmp_path, monkeypatch):
    for version in ("2025.1", "2025.3"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "ncu").touch()
    monkeypatch.setattr(stages.shutil, "which", lambda name: None)
    monkeypatch.setattr(stages, "PLACES", ("/no/such/folder", f"{tmp_path}/*"))
    assert stages.find_tool("ncu") == str(tmp_path / "2025.3" / "ncu")
    assert stages.find_tool("compute-sanitizer") is None
