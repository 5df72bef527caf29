"""What the numbers of a label file mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import yaml

_NUM_VALUES = 1 << 16  # label files hold 8 or 16 bits
_UNKNOWN = np.iinfo(np.int64).min  # no class number and no ignore_index


@dataclass(frozen=True)
class ClassTable:
    """The classes of a labelled data set.

    Class k is ``names[k]``. Label files hold the class numbers themselves, unless `values` says
    otherwise.

    Args:
        names: one for each class.
        values: the class number that each value of the label files stands for, such as
            ``{7: 0, 8: 1}``; default, each class number stands for itself.
        void: values of the label files that stand for no class.
        colours: (red, green, blue) of each class, 0 to 255, for pictures.
        things: names of the countable classes; the others are stuff. None: not told apart.
        label_colours: (red, green, blue), 0 to 255: label files are RGB pictures, and a pixel's
            label value is the number of its colour here. Without `values`, colour k is class k;
            colours beyond the classes belong in `void`.

    Raises:
        ValueError: a repeated name, or entries that do not fit together.
    """

    names: Sequence[str]
    values: Mapping[int, int] | None = None
    void: Sequence[int] = ()
    colours: Sequence[tuple[int, int, int]] | None = None
    things: Sequence[str] | None = None
    label_colours: Sequence[tuple[int, int, int]] | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError(f"a class table needs names that differ, got {list(self.names)}")
        if self.colours is not None and len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} classes, but {len(self.colours)} colours")
        if unknown := sorted(set(self.things or ()) - set(self.names)):
            raise ValueError(f"things that are no class: {', '.join(unknown)}")
        if wrong := sorted(set(range(len(self.names))) ^ set(self.class_of.values())):
            raise ValueError(
                f"`values` must lead to each of the classes 0 to {len(self.names) - 1} and no "
                f"other; missing or beyond: {wrong}"
            )
        if both := sorted(set(self.void) & set(self.class_of)):
            raise ValueError(f"label values that are both a class and void: {both}")
        if self.label_colours is not None:
            self._check_label_colours(self.label_colours)

    def _check_label_colours(self, colours: Sequence[tuple[int, int, int]]) -> None:
        given = [tuple(colour) for colour in colours]
        if any(len(c) != 3 or not all(0 <= level <= 255 for level in c) for c in given):
            raise ValueError(f"`label_colours` must be of three levels from 0 to 255, got {given}")
        if twice := sorted({colour for colour in given if given.count(colour) > 1}):
            raise ValueError(f"`label_colours` has a colour twice: {twice}")
        if without := sorted(set(range(len(given))) ^ {*self.class_of, *self.void}):
            raise ValueError(
                f"`label_colours` has {len(given)} colours, and each needs a class in `values` or "
                f"a place in `void`; missing or beyond: {without}"
            )

    @property
    def class_of(self) -> Mapping[int, int]:
        """Class number of each label value that stands for one."""
        return {k: k for k in range(len(self.names))} if self.values is None else self.values

    @property
    def thing_classes(self) -> list[int] | None:
        """Numbers of the classes that are things; None where things are not told from stuff."""
        if self.things is None:
            return None
        return [k for k, name in enumerate(self.names) if name in self.things]

    def grouped(self, groups: Mapping[str, Sequence[str]]) -> "ClassTable":
        """The table of groups of classes; a class in no group becomes void.

        A group takes the colour of its first class, and is a thing if its classes are.

        Args:
            groups: the names of each group's classes, by the group's name, in the new order.

        Raises:
            ValueError: an unknown class, a class in two groups, an empty group, or a group of both
                things and stuff.
        """
        number = {name: k for k, name in enumerate(self.names)}
        group_of: dict[int, int] = {}
        for g, (group, members) in enumerate(groups.items()):
            if not members:
                raise ValueError(f"group {group!r} holds no class")
            for name in members:
                if name not in number:
                    raise ValueError(
                        f"group {group!r} names {name!r}, which is no class; "
                        f"the classes are {', '.join(self.names)}"
                    )
                if number[name] in group_of:
                    raise ValueError(f"class {name!r} is in two groups")
                group_of[number[name]] = g
            if self.things is not None and len({name in self.things for name in members}) > 1:
                raise ValueError(f"group {group!r} holds both things and stuff")
        class_of = self.class_of
        return ClassTable(
            names=list(groups),
            values={v: group_of[k] for v, k in class_of.items() if k in group_of},
            void=[*self.void, *(v for v, k in class_of.items() if k not in group_of)],
            colours=None
            if self.colours is None
            else [self.colours[number[members[0]]] for members in groups.values()],
            things=None
            if self.things is None
            else [group for group, members in groups.items() if members[0] in self.things],
            label_colours=self.label_colours,
        )


def known_table(name: str) -> ClassTable:
    """The table of a data set that the package knows.

    Args:
        name: of a file in ``densesiam/data/sets/tables``, without extension.
    """
    text = (files("densesiam.data.sets") / "tables" / f"{name}.yaml").read_text(encoding="utf-8")
    return ClassTable(**yaml.safe_load(text))


class LabelDecoder:
    """Turns the values of label files into class numbers.

    Args:
        classes: the meaning of the values.
        ignore_index: the number that stands for void, in files and in the result; no class's.

    Raises:
        ValueError: `ignore_index` is also a class, or the table names a value beyond 16 bits.
    """

    def __init__(self, classes: ClassTable, ignore_index: int) -> None:
        class_of = classes.class_of
        if ignore_index in class_of or 0 <= ignore_index < len(classes.names):
            raise ValueError(f"ignore_index={ignore_index} is also a class or its label value")
        meaning = {**class_of, **dict.fromkeys(classes.void, ignore_index)}
        if beyond := sorted(value for value in meaning if not 0 <= value < _NUM_VALUES):
            raise ValueError(f"label values must be from 0 to {_NUM_VALUES - 1}, got {beyond}")
        if 0 <= ignore_index < _NUM_VALUES:
            meaning[ignore_index] = ignore_index
        self._known = sorted(meaning)
        self._meaning = np.full(_NUM_VALUES, _UNKNOWN)
        self._meaning[self._known] = [meaning[value] for value in self._known]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Class numbers of an array of label values, of the same shape, int64.

        Raises:
            ValueError: values that stand for nothing, which are named.
        """
        classes = self._meaning[values.clip(0, _NUM_VALUES - 1)]
        unknown = (classes == _UNKNOWN) | (values < 0) | (values >= _NUM_VALUES)
        if unknown.any():
            raise ValueError(
                f"label values outside the class table: {np.unique(values[unknown]).tolist()}; "
                f"it knows {self._known}"
            )
        return classes
