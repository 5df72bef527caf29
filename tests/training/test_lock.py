"""Who may write to a run's folder."""

import json
import os
import socket
import time

import pytest

from densesiam import cli
from densesiam.training.lock import LOCK, Lock
from tests.training.earlier.commands import prepare
from tests.transfer.support import error


def leave(folder, **holder):
    ours = {"host": socket.gethostname(), "pid": os.getpid(), "started": "1"}
    (folder / LOCK).write_text(json.dumps({**ours, **holder}))


def dead():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_a_second_holder_is_refused_by_name(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(ValueError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        Lock(tmp_path)
    lock.release()
    assert not list(tmp_path.iterdir())
    Lock(tmp_path).release()


@pytest.mark.parametrize("holder", [{"pid": dead()}, {}], ids=["dead", "number taken again"])
def test_a_dead_process_of_this_host_holds_nothing(tmp_path, holder):
    leave(tmp_path, **holder)
    Lock(tmp_path).release()


def test_another_host_holds_it_for_as_long_as_it_beats(tmp_path):
    leave(tmp_path, host="elsewhere", pid=dead())
    with pytest.raises(ValueError, match="on elsewhere"):
        Lock(tmp_path)
    os.utime(tmp_path / LOCK, (time.time() - 700,) * 2)
    Lock(tmp_path).release()


def test_a_lock_beats(tmp_path, monkeypatch):
    monkeypatch.setattr("densesiam.training.lock._BEAT", 0.01)
    lock = Lock(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    while not (tmp_path / LOCK).stat().st_mtime:
        time.sleep(0.01)  # until the other thread has touched it
    lock.release()


def test_a_damaged_lock_is_held_until_it_is_old(tmp_path):
    (tmp_path / LOCK).write_text("{")
    with pytest.raises(ValueError, match="in use"):
        Lock(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    Lock(tmp_path).release()


@pytest.mark.parametrize("name", ["fit", "pretrain", "probe segmentation"])
def test_a_command_is_refused(name, tmp_path, capsys):
    args = prepare(name, tmp_path)
    (tmp_path / "run").mkdir()
    leave(tmp_path / "run", host="elsewhere", pid=7)
    for more in ([], ["--ckpt_path", "auto"]):
        assert "in use by process 7 on elsewhere" in error(capsys, *args, *more)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    leave(tmp_path / "run", pid=dead())
    assert cli.main(args) == 0
    assert not (tmp_path / "run" / LOCK).exists()
