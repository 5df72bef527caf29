"""Processes that load data, dead or hung: the run ends, and says which and why."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from densesiam import cli
from densesiam.training.workers import LoadingError, explained
from tests.training.support import command, state
from tests.transfer.support import error


def to_workers(number):
    """Send a signal to the processes that load data."""

    def act():
        for process in multiprocessing.active_children():
            os.kill(process.pid, number)
        time.sleep(0.2)  # the loader is to find them dead or stopped

    return act


@pytest.mark.parametrize("name", ["fit", "transfer segmentation"])
def test_a_dead_worker_is_told_with_its_signal(name, tmp_path, steps, capsys):
    args = [*command(name, tmp_path), "--data.num_workers", "2"]
    steps.before[1] = to_workers(signal.SIGKILL)
    said = error(capsys, *args)
    assert "a process that loads data (pid " in said
    assert "was ended by a signal, 'Killed'" in said
    assert "memory" in said
    assert "lower data.num_workers" in said
    assert state(tmp_path / "run") == "failed"
    assert cli.main(args) == 0  # the same command begins or goes on


def test_a_hung_worker_is_noticed(tmp_path, steps, capsys):
    args = [*command("fit", tmp_path), "--data.num_workers", "2", "--data.worker_timeout", "1"]
    steps.before[1] = to_workers(signal.SIGSTOP)
    said = error(capsys, *args)
    assert "have brought no batch for 1.0 s" in said
    assert "data.worker_timeout" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "failed"
    assert not multiprocessing.active_children()  # that would be waited for at exit


def test_workers_end_by_their_parent(tmp_path, steps):
    args = [*command("fit", tmp_path), "--data.num_workers", "2"]
    ended = []

    def terminate():
        for process in multiprocessing.active_children():
            process.terminate()
            process.join()
            ended.append(process.exitcode)

    steps.before[1] = terminate
    assert cli.main(args) == 1
    assert ended == [0, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is", "/dev/shm is full"),
        ("DataLoader worker (pid 7) is killed by signal: Hangup. ", r"\(pid 7\) .*'Hangup'$"),
        (
            "DataLoader worker (pid 7) exited unexpectedly with exit code 3. Details are lost",
            r"\(pid 7\) ended by itself with exit code 3: --data.num_workers 0",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", r"\(pid 7, 8\) ended by itself:"),
    ],
)
def test_reasons(text, expected):
    """Whatever error it has become."""
    met = KeyError("met by the signal")
    met.__context__ = RuntimeError(text)
    with pytest.raises(LoadingError, match=expected), explained():
        raise ValueError("you tried to log 0 which is currently not supported") from met


def test_other_errors_stay():
    with pytest.raises(ValueError, match="other"), explained():
        raise ValueError("other")


def test_a_timeout_that_is_none(tmp_path, capsys):
    args = command("fit", tmp_path)
    said = error(capsys, *args, "--data.worker_timeout", "-1")
    assert "worker_timeout must be 0 or more" in said
