"""The configuration files that come with the package: ``configs/folder.yaml`` and its like."""

from collections.abc import Sequence
from pathlib import Path

_INSTALLED, _CLONED = (folder / "configs" for folder in Path(__file__).parents[1:3])
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _CLONED


def with_shipped(args: Sequence[str]) -> list[str]:
    """A command line whose ``--config configs/...`` work in any folder.

    Args:
        args: the command line.

    Returns:
        The same, with the package's own file where there is none of such a name.
    """
    result = []
    for before, arg in zip(["", *args], args, strict=False):
        option = "--config=" if arg.startswith("--config=") else ""
        name = arg.removeprefix(option)
        own = CONFIGS.parent / name
        meant = (option or before == "--config") and name.startswith("configs/")
        result.append(
            f"{option}{own}" if meant and own.is_file() and not Path(name).exists() else arg
        )
    return result
