"""Which image files to train on; labels are not looked at."""

from collections.abc import Sequence
from pathlib import Path

from densesiam.data.image.files import find_images
from densesiam.data.sets.layout import listing, read_names


class ImageList:
    """Image files to train on.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)


class FolderImages(ImageList):
    """The images in a folder, at any depth; all of them, or those that a list names.

    Args:
        root: the folder.
        names: text file with one image a line: its path in the folder, with or without extension.
            None takes every image.

    Raises:
        FileNotFoundError: the folder or the list is missing, or the folder holds no image.
        NotADirectoryError: the root is a file.
        ValueError: the list is empty, or names images that the folder does not have.
    """

    def __init__(self, root: str | Path, names: str | Path | None = None) -> None:
        paths = find_images(root)
        if names is not None:
            by_name: dict[str, Path] = {}
            for path in paths:
                relative = path.relative_to(root)
                by_name[relative.with_suffix("").as_posix()] = path
                by_name[relative.as_posix()] = path
            paths = named(by_name, read_names(names), names, root)
        super().__init__(paths)


def named(
    paths: dict[str, Path], wanted: Sequence[str], names: str | Path, root: str | Path
) -> list[Path]:
    """The files of a list, in its order.

    Args:
        paths: the files there are, by name.
        wanted: the names in the list.
        names: the list's file, for the message.
        root: where the files lie, for the message.

    Raises:
        ValueError: the list names files that there are not.
    """
    if absent := [name for name in wanted if name not in paths]:
        raise ValueError(
            f"{len(absent)} of the {len(wanted)} images that {names} lists are not in {root}: "
            f"{listing(absent)}"
        )
    return [paths[name] for name in wanted]
