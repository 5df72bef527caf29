"""Outlines of the regions of a mask, along the edges of its pixels: exact, with holes."""

from array import array
from dataclasses import dataclass

import numpy as np

_STRIP = 1 << 22  # corners that are looked at together: a few bytes each


@dataclass(frozen=True)
class Region:
    """A 4-connected region of a mask.

    Attributes:
        outline: corners (N, 2) x, y in pixels, the mask's top left corner being (0, 0); the last
            is joined to the first.
        holes: outlines of what it goes round.
    """

    outline: np.ndarray
    holes: list[np.ndarray]

    def joined(self) -> np.ndarray:
        """One polygon (N, 2) of outline and holes: a way there and back leads to each hole.

        Even-odd filling of it gives the region, as the two ways cancel.
        """
        points = [self.outline]
        for hole in self.holes:
            points += [self.outline[:1], hole, hole[:1]]
        return np.concatenate([*points, self.outline[:1]]) if self.holes else self.outline


def regions(mask: np.ndarray) -> list[Region]:
    """Trace the regions of a mask.

    Every corner of a pixel's edge at which the outline turns has one edge along x and one along y.
    So the corners of a row, taken in pairs, are the ends of its edges, and those of a column too;
    going from partner to partner alternately walks round each outline. The region that a hole is
    in begins, to the left of the hole's topmost corner, with an edge of its outline, or of a hole
    of it that was met before.

    The memory that it takes follows from the corners, not from the pixels.

    Args:
        mask: (H, W) bool.

    Returns:
        Regions from top to bottom; pixels that touch at a corner alone are apart.
    """
    y, x, copy, inside = _corners(mask)
    # In a row the first pass is that of the left edge. In a column it is that of the upper edge if
    # the pixel at the top left is inside, and of the lower one if that at the top right is.
    beside, _ = _partners(y, x, copy)
    above, down = _partners(x, y, np.where(inside, copy, 1 - copy))
    edges = down[0::2]  # the upper ends of all edges along y, from left to right and downward
    places = x[edges] * (mask.shape[0] + 1) + y[edges]
    partners = beside.data, above.data  # whose items are numbers of Python, one at a time
    of = np.full(len(y), -1)  # the region that a corner's outline or hole belongs to
    outlines: list[np.ndarray] = []
    holes: list[list[np.ndarray]] = []
    for first in np.lexsort((x, y)).data:
        if of[first] >= 0:
            continue
        walk = array("q", [first])
        step = 0
        while (now := partners[step][walk[-1]]) != first:
            walk.append(now)
            step = 1 - step
        passed = np.frombuffer(walk, dtype=np.int64)
        corners = np.stack([x[passed], y[passed]], axis=1)
        top, edge = int(y[first]), int(x[first])
        # The topmost corner, and of these the leftmost, has the region or its hole below it.
        if top < mask.shape[0] and edge < mask.shape[1] and mask[top, edge]:
            of[passed] = len(outlines)
            outlines.append(corners)
            holes.append([])
        else:
            before = np.flatnonzero(~mask[top - 1, :edge])
            begin = int(before[-1]) + 1 if len(before) else 0
            place = begin * (mask.shape[0] + 1) + top - 1
            region = of[edges[np.searchsorted(places, place, side="right") - 1]]
            of[passed] = region
            holes[region].append(corners)
    return [Region(*each) for each in zip(outlines, holes, strict=True)]


def _corners(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where outlines turn: y and x, and for each whether it is the second pass of a corner.

    Where two pixels touch at a corner alone, it is passed twice: once round each. Then there is
    whether the pixel at the top left is in the mask.
    """
    height, width = mask.shape
    rows = max(1, _STRIP // (width + 1))
    found: list[tuple[np.ndarray, ...]] = []
    for top in range(0, height + 1, rows):
        bottom = min(height + 1, top + rows)  # of the corners' rows; those of pixels are one more
        sides = ((int(top == 0), int(bottom == height + 1)), (1, 1))
        padded = np.pad(mask[max(0, top - 1) : bottom], sides).astype(np.int8)
        around = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
        across = padded[:-1, :-1] != padded[1:, 1:]  # at a meeting of four: whether they differ
        meeting = (around == 2) & ~across & (padded[:-1, :-1] != padded[:-1, 1:])
        y, x = np.nonzero((around == 1) | (around == 3) | meeting)
        found.append((y + top, x, meeting[y, x], padded[y, x] == 1))
    y, x, twice, inside = (np.concatenate(values) for values in zip(*found, strict=True))
    copy = np.concatenate([np.zeros(len(y), np.int64), np.ones(int(twice.sum()), np.int64)])
    y, x, inside = (np.concatenate([values, values[twice]]) for values in (y, x, inside))
    return y, x, copy, inside


def _partners(
    line: np.ndarray, along: np.ndarray, copy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The other end of each corner's edge, on lines of one coordinate; and the corners in pairs."""
    order = np.lexsort((copy, along, line))
    partner = np.empty(len(line), dtype=np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner, order
