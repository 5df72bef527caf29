"""A lock on a run's folder, which says who holds it."""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from densesiam._writing import write_json

LOCK = ".lock"
_BEAT = 60.0  # seconds
_STALE = 600.0  # seconds without a beat; only for a process on another machine


class Lock:
    """Hold a folder for this process alone.

    The file ``.lock`` names host and process, and is touched once a minute. One that was left
    behind is taken over: where its process is on this host and gone, or where it is on another host
    and has not been touched for 10 minutes.

    Args:
        folder: what to hold; it exists.

    Raises:
        ValueError: another process holds it; the message names it.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._end = threading.Event()
        while not self._take():
            holder = _read(self._path)
            if holder is not None and not _left_behind(self._path, holder):
                raise ValueError(
                    f"{folder} is in use by process {holder.get('pid')} on {holder.get('host')}: "
                    "wait for its end, or give another --output"
                )
            self._remove_stale()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def release(self) -> None:
        """Give the folder back."""
        self._end.set()
        self._beat.join()
        self._path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Make the file, unless there is one."""
        mine = self._path.with_name(f"{LOCK}-{os.getpid()}")
        write_json(
            mine,
            {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())},
        )
        try:
            # A link comes with its content; a file that is made and then filled is empty between.
            os.link(mine, self._path)
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def _remove_stale(self) -> None:
        """Take the file away; of several that try, one gets it, and the others find none."""
        aside = self._path.with_name(f"{LOCK}-stale-{os.getpid()}")
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        aside.unlink()

    def _keep_alive(self) -> None:
        while not self._end.wait(_BEAT):
            try:
                os.utime(self._path)
            except OSError:
                return  # the folder is gone, and the run will tell


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
    if holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int):
        started = _started(holder["pid"])
        return started is None or started != holder.get("started")
    try:
        return time.time() - path.stat().st_mtime > _STALE
    except FileNotFoundError:
        return True


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
