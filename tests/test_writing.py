"""Files that are whole at every moment: with disks that fail, and processes that are killed."""

import json
import os

import pytest
from PIL import Image

from densesiam import _writing
from densesiam._writing import replacing, write_json, write_text
from tests.faults import STEPS, fail_at, killed_at


def save(path, content):
    with replacing(path, path.with_name("previous.txt")) as partial:
        partial.write_text(content)


@pytest.mark.parametrize("links", [True, False])
# Where a link fails there is another way.
@pytest.mark.parametrize("step", [step for step in STEPS if step != "link"])
def test_a_failure_leaves_the_file_before(tmp_path, step, links, monkeypatch):
    path = tmp_path / "file.txt"
    if not links:
        monkeypatch.setattr(os, "link", _refuse)
    save(path, "first")
    save(path, "second")
    with fail_at(step) as failed, pytest.raises(OSError, match=r"cannot write .*file.txt: .*full"):
        save(path, "third")
    assert failed
    there = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert "second" in there.values()  # under its own name, or where the one before is looked for
    assert set(there) <= {"file.txt", "previous.txt"}
    save(path, "third")
    assert path.read_text() == "third"


def _refuse(*_):
    raise OSError("no links here")


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_leaves_the_file_before(tmp_path, step):
    path = tmp_path / "file.txt"
    save(path, "first")
    save(path, "second")
    assert killed_at(step, lambda: save(path, "third"))
    assert path.read_text() in ("second", "third")
    save(path, "fourth")  # what the killed process left is in nobody's way
    assert path.read_text() == "fourth"
    assert {p.name for p in tmp_path.iterdir()} == {"file.txt", "previous.txt"}


def test_every_kind_of_file(tmp_path):
    write_text(tmp_path / "a.txt", "ä")
    write_json(tmp_path / "a.json", {"value": [float("nan"), 1.0]})
    with replacing(tmp_path / "a.png") as partial:
        Image.new("L", (2, 2)).save(partial)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ä"
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": [None, 1.0]}
    assert Image.open(tmp_path / "a.png").size == (2, 2)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_error_of_the_writer_leaves_nothing(tmp_path):
    def fail():
        with replacing(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise KeyError("of the writer's own")

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_flushed_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(_writing.os, "open", _refuse)
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"
