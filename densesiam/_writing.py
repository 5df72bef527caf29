"""Files that are whole at every moment, or not there."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PARTIAL = ".partial"
_LONGEST = 255  # bytes of a name, on nearly all file systems


@contextmanager
def replacing(path: Path, previous: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Write a file that takes another's place only when all of it is on the disk.

    A process that is killed, or a disk that is full, leaves the file that was there before.

    Args:
        path: the file.
        previous: where to keep the file that was there before; None keeps none.
        durable: wait for the disk, so that the file outlives a power failure too; what can be made
            again in no time need not.

    Yields:
        Where to write: a file beside it, since a name can be given at once within a file system
        only.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    name = f".{path.stem}{_PARTIAL}{path.suffix}"
    if len(os.fsencode(name)) > _LONGEST:
        name = f".{digest(path.name)}{_PARTIAL}{path.suffix}"
    partial = path.with_name(name)
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(partial, path)
        if durable:
            _flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def is_partial(name: str) -> bool:
    """Whether a file's name is of what `replacing` writes to: a process was killed meanwhile."""
    return re.fullmatch(rf"\..*{re.escape(_PARTIAL)}(\.[^.]*)?", name) is not None


def digest(text: str) -> str:
    """40 characters in place of a name that is too long."""
    return hashlib.sha1(os.fsencode(text), usedforsecurity=False).hexdigest()


def printable(text: str) -> str:
    """Text that can be printed and written, where a file's name in it is not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _keep(path: Path, previous: Path) -> None:
    """Give a file another name as well, without a moment in which it has none."""
    link = previous.with_name(f".{previous.stem}.partial{previous.suffix}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links; until the end, only `previous` is there
        os.replace(path, previous)
        return
    try:
        os.replace(link, previous)
    finally:
        link.unlink(missing_ok=True)  # two names of one file are not replaced, by POSIX


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk too."""
    with suppress(OSError):  # some systems and file systems cannot open or flush folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, that is whole at every moment.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is whole at every moment; nan and infinity become null.

    Raises:
        OSError: it cannot be written; the message names the file.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, list) else value

    write_text(path, json.dumps(plain(content), indent=2) + "\n")
