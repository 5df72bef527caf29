"""TensorBoard's logs of a run, where the disk may be full."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class RunLogs(TensorBoardLogger):
    """Lightning's logger, whose errors of the disk name the folder and hide no other error.

    TensorBoard writes in a thread. What goes wrong there is raised by a later call, without a name,
    and Lightning takes it for a value that cannot be logged.
    """

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer, made when it is first asked for.

        Raises:
            OSError: its file cannot be made; the message names the folder.
        """
        with self.named():
            return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers.

        Raises:
            OSError: they cannot be written; the message names the folder.
        """
        with self.named():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write what is waiting.

        Raises:
            OSError: it cannot be written; the message names the folder.
        """
        with self.named():
            super().save()

    def finalize(self, status: str) -> None:
        """Close the files; of a run that has failed, with no error beside its own.

        Raises:
            OSError: they cannot be written; the message names the folder.
        """
        if status == "success":
            with self.named():
                super().finalize(status)
        else:
            with suppress(OSError):
                super().finalize(status)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Tell which folder could not be written.

        Raises:
            OSError: an error of the disk in the block.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            cause: Any = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            reason = cause.strerror or cause
            raise OSError(f"cannot write {self.log_dir}: {reason}") from error
