"""What categories are called: names, merged and dropped ones, colours; and the file of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import ImageColor

from densesiam._reading import check_is_file
from densesiam._writing import write_text
from densesiam.reports.visualize import palette


@dataclass(frozen=True)
class Categories:
    """The categories that a reader sees, and which of them each of the model's becomes.

    Attributes:
        names: of the N categories.
        colours: sRGB (N, 3), uint8, no two alike.
        of: (K,) int64, the category of each of the model's; `void` for those that are dropped.
    """

    names: list[str]
    colours: np.ndarray
    of: np.ndarray

    @classmethod
    def plain(cls, count: int) -> "Categories":
        """Numbers for names, and the palette."""
        names = [f"category {k}" for k in range(count)]
        return cls(names, palette(count), np.arange(count))

    @classmethod
    def called(
        cls, names: Sequence[str], count: int, assignment: Sequence[int] | None = None
    ) -> "Categories":
        """Categories called after classes.

        Args:
            names: of the classes.
            count: K.
            assignment: class of each category, -1 for none; None where category k is class k. The
                first category of a class has the class's colour.
        """
        if assignment is None:
            return cls(list(names), palette(count), np.arange(count))
        colours, spare = palette(len(names) + count), len(names)
        chosen, used = [], set()
        called = []
        for k, c in enumerate(assignment):
            called.append(f"{names[c]} ({k})" if c >= 0 else f"category {k}")
            if c >= 0 and c not in used:
                used.add(c)
                chosen.append(c)
            else:
                chosen.append(spare)
                spare += 1
        return cls(called, colours[chosen], np.arange(count))

    @property
    def void(self) -> int:
        """The number of pixels in no category: 255, or 65535 where there are more categories."""
        return 255 if len(self.names) <= 255 else 65535

    @property
    def drops(self) -> bool:
        """Whether some of the model's categories are dropped."""
        return bool((self.of == self.void).any() and self.void >= len(self.names))

    @property
    def depth(self) -> type[np.unsignedinteger]:
        """The type of label maps: 8 bits, or 16 where they do not do."""
        return np.uint8 if len(self.names) + self.drops <= 256 else np.uint16

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """The model's categories as those of the reader, of type `depth`."""
        if np.array_equal(self.of, np.arange(len(self.of))) and labels.dtype == self.depth:
            return labels
        table = np.asarray(self.of).astype(self.depth)
        return table[labels]


def read_categories(path: Path, count: int) -> Categories:
    """Read a file of names.

    .. code-block:: yaml

        categories:
          0: sky
          1: {name: grass, colour: "#009E73"}
          2: grass                # one category with 1
          3: null                 # dropped: void

    Categories that it does not list keep their number for a name. The file's order is that of the
    new numbers; those that are not listed follow.

    Args:
        path: the file.
        count: K, the model's categories.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, names categories that there are not, or gives two
            categories one colour.
    """
    check_is_file(path, "file of names", "expected a YAML file such as names.yaml")
    expected = "expected `categories:` and a line such as `0: sky` for each"
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {expected}") from error
    entries = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} names no categories: {expected}")
    if wrong := [k for k in entries if not isinstance(k, int) or not 0 <= k < count]:
        raise ValueError(
            f"{path} names categories {', '.join(map(str, wrong))}; the model has 0 to {count - 1}"
        )
    name_of = {k: _name(path, k, entry) for k, entry in entries.items()}
    name_of |= {k: f"category {k}" for k in range(count) if k not in name_of}
    names = list(dict.fromkeys(name for name in name_of.values() if name is not None))
    if not names:
        raise ValueError(f"{path} drops every category: keep one at least")
    colours = palette(len(names))
    given: dict[str, np.ndarray] = {}
    for k, entry in entries.items():
        if isinstance(entry, Mapping) and entry.get("colour") is not None:
            given.setdefault(entry["name"], _colour(path, k, entry["colour"]))
    _place(path, names, colours, given)
    number = {name: n for n, name in enumerate(names)}
    void = 255 if len(names) <= 255 else 65535
    of = [void if name_of[k] is None else number[str(name_of[k])] for k in range(count)]
    return Categories(names, colours, np.array(of, dtype=np.int64))


def _place(
    path: Path, names: Sequence[str], colours: np.ndarray, given: Mapping[str, np.ndarray]
) -> None:
    """Set the colours that were given; others that happen to be alike take fresh ones."""
    chosen = {name: tuple(colour.tolist()) for name, colour in given.items()}
    if len(set(chosen.values())) < len(chosen):
        raise ValueError(f"{path} gives two categories one colour")
    fresh = (
        colour
        for colour in palette(2 * len(names) + 1)
        if tuple(colour.tolist()) not in chosen.values()
    )
    for n, name in enumerate(names):
        colours[n] = given[name] if name in given else next(fresh)


def _name(path: Path, number: int, entry: Any) -> str | None:
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    if isinstance(entry, Mapping) and (name is None or set(entry) - {"name", "colour"}):
        raise ValueError(
            f"{path}, category {number}: expected {{name: ..., colour: ...}}, got {dict(entry)}"
        )
    if name is not None and not isinstance(name, str | int | float):
        raise ValueError(f"{path}, category {number}: expected a name or null, got {name!r}")
    return None if name is None else str(name)


def _colour(path: Path, number: int, value: Any) -> np.ndarray:
    try:
        levels = ImageColor.getrgb(value) if isinstance(value, str) else tuple(map(int, value))
        if len(levels) != 3 or not all(0 <= level <= 255 for level in levels):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{path}, category {number}: expected a colour such as "#009E73" or [0, 158, 115], '
            f"got {value!r}"
        ) from error
    return np.array(levels, dtype=np.uint8)


def write_template(path: Path, categories: Categories, shares: Sequence[float]) -> None:
    """Write a file of names to be filled in, with each category's share of an image."""
    lines = [
        "# Names for the categories; see the gallery in report.html. Then:",
        "#   densesiam predict CHECKPOINT PHOTOS --names names.yaml --output ANOTHER",
        "# The same name twice makes one category of two, null drops one, and",
        '# {name: grass, colour: "#009E73"} chooses a colour.',
        "categories:",
    ]
    for k in range(len(categories.of)):
        n = int(categories.of[k])
        dropped = categories.drops and n == categories.void
        name = "null" if dropped else _quoted(categories.names[n])
        share = "" if dropped else f"  # {100 * shares[n]:.1f} % of an image on average"
        lines.append(f"  {k}: {name}{share}")
    write_text(path, "\n".join(lines) + "\n")


def _quoted(name: str) -> str:
    return yaml.safe_dump(name, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
