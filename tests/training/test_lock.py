"""Who may write to a run's folder."""

import errno
import json
import os
import socket
import time
from types import SimpleNamespace

import pytest

from densesiam import cli
from densesiam.training import lock
from densesiam.training.lock import LOCK, Lock
from tests.faults import fail_at
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
    held = Lock(tmp_path)
    with pytest.raises(ValueError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        Lock(tmp_path)
    held.release()
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


def test_processes_of_a_container_are_others_of_the_same_number(tmp_path):
    leave(tmp_path, pid=dead(), numbered="pid:[1]")
    with pytest.raises(ValueError, match="in use"):
        Lock(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    Lock(tmp_path).release()


def test_what_was_left_on_another_host_is_waited_for(tmp_path, monkeypatch, capsys):
    clock = SimpleNamespace(now=time.time(), time=lambda: clock.now)
    path, beats = tmp_path / LOCK, []

    def sleep(seconds):
        clock.now += 60
        if clock.now in beats:
            os.utime(path, (clock.now,) * 2)

    clock.sleep = sleep
    monkeypatch.setattr(lock, "time", clock)
    begun = clock.now = float(int(clock.now))
    leave(tmp_path, host="elsewhere", pid=7)
    os.utime(path, (begun - 90,) * 2)
    beats.append(begun + 120)
    with pytest.raises(ValueError, match="process 7 on elsewhere"):
        Lock(tmp_path, wait=True)
    assert clock.now == begun + 120  # as soon as it is seen at work
    held = Lock(tmp_path, wait=True)
    assert clock.now == begun + 120 + 660
    assert held.heard == begun + 120
    held.release()
    said = capsys.readouterr().out
    assert said.count("was last touched 90 s ago by process 7 on elsewhere: waiting for it") == 1
    leave(tmp_path, host="elsewhere", pid=7)
    os.utime(path, (clock.now,) * 2)
    with pytest.raises(ValueError, match="in use"):
        Lock(tmp_path)
    clock.sleep = lambda seconds: path.unlink()  # given back
    Lock(tmp_path, wait=True).release()


def test_of_several_that_take_over_one_gets_it(tmp_path, monkeypatch):
    leave(tmp_path, pid=dead())
    judge, quicker = lock._left_behind, []

    def judged(*args):
        found = judge(*args)
        if not quicker:
            quicker.append(None)
            quicker[0] = Lock(tmp_path)  # after the other one has judged, before it takes over
        return found

    monkeypatch.setattr(lock, "_left_behind", judged)
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    quicker[0].release()
    assert not list(tmp_path.iterdir())


def test_what_another_has_taken_over_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    stopped = Lock(tmp_path)  # for too long, as by SIGSTOP
    leave(tmp_path, host="elsewhere")
    os.utime(tmp_path / LOCK, (0, 0))
    stopped._beat.join()
    stopped.release()
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"
    assert (tmp_path / LOCK).stat().st_mtime == 0


def test_file_systems_without_hard_links_have_locks_too(tmp_path, monkeypatch):
    def link(*args):
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    held = Lock(tmp_path)
    with pytest.raises(ValueError, match="in use"):
        Lock(tmp_path)
    held.release()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_locked_is_not_made(tmp_path, capsys):
    args = prepare("fit", tmp_path)
    with fail_at("replace"):
        said = error(capsys, *args)
    assert f"cannot write to {tmp_path / 'run'}" in said
    assert "the disk is full" in said
    assert not (tmp_path / "run").exists()


def test_a_lock_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    held = Lock(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    while not (tmp_path / LOCK).stat().st_mtime:
        time.sleep(0.01)  # until the other thread has touched it
    held.release()


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
