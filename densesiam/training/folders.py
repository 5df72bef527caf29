"""Folders that results go to."""

from pathlib import Path

from densesiam.training.console import first_process


def claim_folder(output: str | None, default: str) -> Path:
    """Make an empty folder to write to.

    Args:
        output: the folder; it must not exist, or be empty.
        default: used if `output` is None; where it is taken, a number is added.

    Raises:
        FileExistsError: the folder holds something.
        OSError: it cannot be made or written to.
    """
    folder = Path(output or default)
    if not first_process():
        return folder  # the first process makes it, and alone writes to it
    number = 2
    while output is None and folder.exists() and any(folder.iterdir()):
        folder = Path(f"{default}-{number}")
        number += 1
    try:
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(
                f"{folder} is not empty, and nothing there will be overwritten: give another "
                "--output (or, to go on with a run, --ckpt_path last)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror}): give another --output"
        ) from error
    return folder


def check_writable(folder: Path) -> None:
    """Find out now, rather than after the work, whether files can be made in a folder.

    Raises:
        OSError: they cannot.
    """
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()
