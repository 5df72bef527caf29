"""Where data sets keep their files, and saying so when they are not there."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from densesiam._reading import check_is_file

_DEPTH = 3  # how many folders deep to look for what lies elsewhere


def find_folder(root: Path, places: Sequence[str], data_set: str, tree: Sequence[str]) -> Path:
    """The folder of a data set that lies in one of a few places.

    Args:
        root: folder of the whole data set.
        places: paths below it, any of which will do; the first that exists is taken.
        data_set: name of the data set.
        tree: every path that it is expected to have below `root`, for the message.

    Raises:
        FileNotFoundError: none exists; the message draws the expected layout, and names the folder
            to give as root where these folders are found above or below it.
    """
    for place in places:
        if (root / place).is_dir():
            return root / place
    what = " or ".join(places)
    raise FileNotFoundError(misplaced(root, f"no folder {what}", places, data_set, tree))


def misplaced(
    root: Path, problem: str, missing: Sequence[str], data_set: str, tree: Sequence[str]
) -> str:
    """Say what is missing of a data set, and draw where it should be.

    Args:
        root: folder of the whole data set.
        problem: what is missing, in words.
        missing: the missing paths below `root`, which are marked in the drawing.
        data_set: name of the data set.
        tree: every path that is expected below `root`.
    """
    message = f"{data_set}: {problem} in {root}"
    if not root.is_dir():
        message += ", which is no folder itself"
    elif better := _elsewhere(root, missing):
        message += f", but in {better}: give that as `root`"
    return f"{message}. Expected:\n{draw_tree(str(root), tree, missing)}"


def draw_tree(root: str, paths: Iterable[str], missing: Sequence[str] = ()) -> str:
    """Draw folders and files as a tree; a folder with one entry shares its line.

    Args:
        root: the top line.
        paths: relative paths, slashes between their parts.
        missing: paths among them (or above some of them) to mark.
    """
    top: dict[str, dict] = {}
    for path in paths:
        node = top
        for part in path.split("/"):
            node = node.setdefault(part, {})
    return "\n".join([root, *_draw(top, "", "", missing)])


def _draw(node: dict[str, dict], above: str, indent: str, missing: Sequence[str]) -> list[str]:
    lines = []
    for i, (name, children) in enumerate(node.items()):
        last = i == len(node) - 1
        path = above + name
        mark = path in missing
        while len(children) == 1:
            ((only, children),) = children.items()
            name, path = f"{name}/{only}", f"{path}/{only}"
            mark |= path in missing
        lines.append(f"{indent}{'└── ' if last else '├── '}{name}{'   <- missing' if mark else ''}")
        lines += _draw(children, f"{path}/", indent + ("    " if last else "│   "), missing)
    return lines


def _elsewhere(root: Path, missing: Sequence[str]) -> Path | None:
    """The folder that holds what is missing from `root`: above it, or a few folders below."""
    above = root.resolve().parent
    if _holds(above, missing):
        return above
    level = [root]
    for _ in range(_DEPTH if missing else 0):
        level = [folder for upper in level for folder in _folders(upper)]
        for folder in level:
            if _holds(folder, missing):
                return folder
    return None


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:  # which need not be looked up one by one
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []  # nothing in it helps whoever may not read it
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _holds(folder: Path, missing: Sequence[str]) -> bool:
    return any((folder / path).exists() for path in missing)


def read_names(path: str | Path) -> list[str]:
    """The names in a list of images: one a line, in the list's order.

    Blank lines and lines that start with # are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names nothing, or something twice.
    """
    path = Path(path)
    expected = "expected a text file with the name of one image a line"
    check_is_file(path, "list of images", expected)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the list of images {path} is no text: {expected}") from error
    lines = (line.strip() for line in text.splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"the list of images {path} is empty: expected one name a line")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the list of images {path} names some twice: {listing(twice)}")
    return names


def listing(items: Sequence[object], most: int = 5) -> str:
    """The first few of many things, and how many more there are."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(str(item) for item in items[:most]) + rest
