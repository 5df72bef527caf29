"""Folders that results go to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from densesiam._writing import is_partial
from densesiam.training.console import first_process
from densesiam.training.lock import LOCK, Lock

# What a run leaves, and may begin anew upon where it left no checkpoint.
_OF_A_RUN = {"config.yaml", "summary.json", "logs", "pictures", "checkpoints"}

_PROBE = ".writable"


def choose_folder(output: str | None, default: str, of_training: bool = False) -> Path:
    """Find an empty or missing folder to write to.

    Each process of several does, and finds the same: none writes before all have begun to train.

    Args:
        output: the folder; it must not exist, or be empty.
        default: used if `output` is None; where it is taken, a number is added.
        of_training: whether it is for a training, which could be gone on with.

    Raises:
        FileExistsError: the folder holds something.
        NotADirectoryError: it is a file.
    """
    folder = Path(output or default)
    if output is not None and folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: give another --output")
    number = 2
    while output is None and not _is_empty(folder):
        folder = Path(f"{default}-{number}")
        number += 1
    if not _is_empty(folder):
        resume = " (or, to go on with a run, --ckpt_path auto)" if of_training else ""
        raise FileExistsError(
            f"{folder} is not empty, and nothing there will be overwritten: give another "
            f"--output{resume}"
        )
    return folder


def claim_folder(output: str | None, default: str, of_training: bool = False) -> Path:
    """Make an empty folder to write to; see `choose_folder`.

    Raises:
        FileExistsError: the folder holds something.
        OSError: it cannot be made or written to.
    """
    folder = choose_folder(output, default, of_training)
    if first_process():
        make_folder(folder)
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder, unless there is one, and see that it can be written to.

    Raises:
        OSError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror}): give another --output"
        ) from error


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing."""
    return not folder.exists() or (folder.is_dir() and not _content(folder))


def _content(folder: Path) -> set[str]:
    """Names in a folder, but for a lock, which is for `Lock` to judge, and files half written."""
    names = {path.name for path in folder.iterdir() if not is_partial(path.name)}
    return {name for name in names if name != _PROBE and not name.startswith(LOCK)}


def check_writable(folder: Path) -> None:
    """Find out now, rather than after the work, whether files can be made in a folder.

    Raises:
        OSError: they cannot.
    """
    probe = folder / _PROBE
    probe.touch()
    probe.unlink()


def holds_no_run(folder: Path) -> bool:
    """Whether a run can begin in a folder: nothing is there, or what one left that did not begin.

    Args:
        folder: it may be missing.
    """
    if not folder.is_dir():
        return not folder.exists()
    return _content(folder) <= _OF_A_RUN and not any(folder.glob("checkpoints/[!.]*.ckpt"))


class Claim:
    """A folder that is held for a run.

    Attributes:
        begun: whether the run has: until then, all that it wrote is taken away again if it fails.
    """

    begun = False

    def begin(self) -> None:
        """The run has begun."""
        self.begun = True


@contextmanager
def held(folder: Path) -> Iterator[Claim]:
    """Hold a folder for a run; leave no trace of one that never began.

    Args:
        folder: it may be missing.

    Yields:
        The claim, to be told when the run has begun.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be made or written to.
    """
    claim = Claim()
    if not first_process():
        yield claim
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
    except OSError as error:
        _remove_empty(missing)
        raise OSError(f"cannot write to {folder} ({error}): give another --output") from error
    before = set(folder.rglob("*"))
    try:
        yield claim
    except BaseException:
        if not claim.begun:
            for path in sorted(set(folder.rglob("*")) - before, reverse=True):  # inner ones first
                path.rmdir() if path.is_dir() else path.unlink()
        raise
    finally:
        lock.release()
        if not claim.begun:
            _remove_empty(missing)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders in which there is nothing, inner ones first; they may be missing."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
