"""Checkpoints through full disks, kills and damage: the last one that was written is never lost."""

import contextlib
import os
import resource

import pytest
import torch

from densesiam import cli
from densesiam.training.checkpoints import (
    WholeCheckpoints,
    open_checkpoint,
    previous_checkpoint,
    read_file,
)
from tests.faults import STEPS, fail_at, killed_at
from tests.training.earlier.commands import prepare
from tests.transfer.support import error, same, tensors


def read(path):
    return read_file(path, "expected a checkpoint")


def save(path, step):
    WholeCheckpoints().save_checkpoint({"step": step, "weights": torch.full((999,), step)}, path)


@pytest.fixture
def last(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(path, 1)
    save(path, 2)
    return path


def test_the_one_before_is_kept(last):
    assert read(last)["step"] == 2
    assert read(previous_checkpoint(last))["step"] == 1
    assert sorted(path.name for path in last.parent.iterdir()) == [
        "last-previous.ckpt",
        "last.ckpt",
    ]


@pytest.mark.parametrize("step", [step for step in STEPS if step != "link"])
def test_a_full_disk_names_the_file_and_loses_nothing(last, step):
    with (
        fail_at(step),
        pytest.raises(OSError, match=r"cannot write checkpoint .*last.ckpt: .* full"),
    ):
        save(last, 3)
    assert open_checkpoint("last", str(last.parents[1]), read)[1]["step"] == 2


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_while_saving_loses_nothing(last, step):
    assert killed_at(step, lambda: save(last, 3))
    assert open_checkpoint("last", str(last.parents[1]), read)[1]["step"] in (2, 3)
    save(last, 4)
    assert read(last)["step"] == 4


def test_a_real_limit_of_the_system(last):
    """torch's own writer, stopped by the system in the middle of the file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        with pytest.raises(OSError, match=r"last.ckpt: .*; the last good one is kept"):
            save(last, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(last)["step"] == 2
    assert sorted(path.name for path in last.parent.iterdir()) == [
        "last-previous.ckpt",
        "last.ckpt",
    ]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(last, capsys):
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    path, found = open_checkpoint("last", str(last.parents[1]), read)
    assert found["step"] == 1
    assert path == previous_checkpoint(last)
    assert "damaged" in capsys.readouterr().out
    with pytest.raises(ValueError, match="damaged"):  # a path is what it says
        open_checkpoint(str(last), None, read)


def test_a_missing_folder_is_made_and_an_impossible_one_named(tmp_path):
    save(tmp_path / "new" / "last.ckpt", 1)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write checkpoint .*; there is none before it"):
        save(tmp_path / "file" / "last.ckpt", 1)


def test_temporary_files_lie_beside_the_target(last, monkeypatch, tmp_path):
    """Where the system's folder for them is on another file system, a rename would be a copy."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    moved = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: moved.append((a, b)) or real(a, b))
    save(last, 3)
    assert {a.parent for a, _ in moved} == {last.parent}


def test_a_run_goes_on_from_the_one_before(tmp_path, capsys):
    args = [*prepare("fit", tmp_path), "--trainer.max_epochs", "3"]
    assert cli.main(args) == 0
    whole = tensors(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    assert cli.main([*args, "--ckpt_path", "last"]) == 0
    said = capsys.readouterr().out
    assert "the checkpoint before it is taken" in said.lower()
    assert same(tensors(tmp_path / "run"), whole)


def test_a_full_disk_ends_a_run_with_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    args = [*prepare("fit", tmp_path), "--trainer.max_epochs", "3"]
    count = []

    class Full(WholeCheckpoints):
        def save_checkpoint(self, *args, **options):
            count.append(1)
            with fail_at("fsync") if len(count) == 2 else contextlib.nullcontext():
                super().save_checkpoint(*args, **options)

    monkeypatch.setattr("densesiam.training.options.WholeCheckpoints", Full)
    said = error(capsys, *args)
    assert "last.ckpt: the disk is full; the last good one is kept" in said
    assert read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
