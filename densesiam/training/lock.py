"""A lock on a run's folder, which says who holds it."""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from densesiam._writing import write_json
from densesiam.training.console import say

LOCK = ".lock"
_BEAT = 60.0  # seconds
_STALE = 600.0  # seconds without a beat; only for a process on another machine
_LOOK = 1.0  # seconds, while a beat is waited for


class Lock:
    """Hold a folder for this process alone.

    The file ``.lock`` names host and process, and is touched once a minute. One that was left
    behind is taken over: where its process is on this host and gone, or where it is on another host
    and has not been touched for 10 minutes.

    Attributes:
        heard: when the holder of a lock that was left behind touched it last, in seconds since
            1970; None where there was no such lock.

    Args:
        folder: what to hold; it exists.
        wait: whether to wait, where a process on another host may hold it, until that touches it
            or the 10 minutes are over. A queue starts a job anew on another host within seconds.

    Raises:
        ValueError: another process holds it; the message names it.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.heard: float | None = None
        self._path = folder / LOCK
        self._end = threading.Event()
        self._mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "numbered": _numbering(),
        }
        while not self._take():
            holder = _read(self._path)
            if holder is None:
                continue
            if not (_left_behind(self._path, holder) or (wait and _falls_silent(folder, holder))):
                raise ValueError(
                    f"{folder} is in use by {_name(holder)}: wait for its end, or give another "
                    "--output"
                )
            self._remove_stale(holder)
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def __enter__(self) -> "Lock":
        """Hold the folder for a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()

    def release(self) -> None:
        """Give the folder back, unless another process has taken it over."""
        self._end.set()
        self._beat.join()
        with suppress(OSError):  # what ended the run, a full disk say, is the error to tell
            if _read(self._path) == self._mine:
                self._path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Make the file, unless there is one."""
        mine = self._path.with_name(f"{LOCK}-{uuid4().hex}")
        write_json(mine, self._mine)
        try:
            # A link comes with its content; a file that is made and then filled is empty between.
            os.link(mine, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with self._path.open("x") as file:
                    json.dump(self._mine, file)
            except FileExistsError:
                return False
        finally:
            mine.unlink()
        return True

    def _remove_stale(self, holder: dict[str, Any]) -> None:
        """Take the holder's file away; of several that try, one gets it."""
        aside = self._path.with_name(f"{LOCK}-{uuid4().hex}")
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        if _read(aside) == holder:
            self.heard = aside.stat().st_mtime
        else:
            # Somebody was quicker, and this is the lock of a process that is at work.
            with suppress(OSError):
                os.link(aside, self._path)
        aside.unlink()

    def _keep_alive(self) -> None:
        while not self._end.wait(_BEAT):
            with suppress(OSError):  # a file system that is away for a while
                if _read(self._path) != self._mine:
                    return  # taken over while this process stood still, or gone with the folder
                os.utime(self._path)


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None where it has just been given back."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _left_behind(path: Path, holder: dict[str, Any]) -> bool:
    if _is_here(holder):
        started = _started(holder["pid"])
        return started is None or started != holder.get("started")
    try:
        return time.time() - path.stat().st_mtime > _STALE
    except FileNotFoundError:
        return True


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether a holder is on this host, and has its number from where this process has its own."""
    return (
        holder.get("host") == socket.gethostname()
        and holder.get("numbered", _numbering()) == _numbering()
        and isinstance(holder.get("pid"), int)
    )


def _numbering() -> str | None:
    """Where processes' numbers are from: containers count anew, also those with their host's name.

    None where the system does not tell.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _falls_silent(folder: Path, holder: dict[str, Any]) -> bool:
    """Wait for a holder on another host to touch its lock, or for the lock to be left behind."""
    path = folder / LOCK
    if _is_here(holder):
        return False  # it was seen at work
    told = False
    try:
        touched = path.stat().st_mtime
        while not _left_behind(path, holder):
            if path.stat().st_mtime != touched or _read(path) != holder:
                return False
            if not told:
                told = True
                say(
                    f"{folder} was last touched {time.time() - touched:.0f} s ago by "
                    f"{_name(holder)}: waiting for it to do so again, or for {_STALE:.0f} s "
                    "without"
                )
            time.sleep(_LOOK)  # a beat on a shared disk announces itself to nobody
    except FileNotFoundError:
        pass  # given back
    return True


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _started(pid: int) -> str | None:
    """When a process of this host began, in its kernel's own words; None where there is none.

    Numbers of processes come again, and this tells one from the next. Where the system does not
    tell, all that run began at "unknown".
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "unknown"
    state, *fields = status.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]
