"""Files that people name."""

from pathlib import Path


def check_is_file(path: Path, kind: str, expected: str) -> None:
    """Refuse a path at which there is no file.

    Args:
        path: as it was given.
        kind: what it should have been, such as "checkpoint".
        expected: what to give instead, for the message.

    Raises:
        FileNotFoundError: nothing is there.
        IsADirectoryError: a folder is.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a {kind}: {expected}")
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} {path}: {expected}")
