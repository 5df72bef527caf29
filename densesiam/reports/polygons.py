"""Outlines of the regions of a mask, along the edges of its pixels: exact, with holes."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


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
    going from partner to partner alternately walks round each outline.

    Args:
        mask: (H, W) bool.

    Returns:
        Regions from top to bottom; pixels that touch at a corner alone are apart.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    around = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
    across = padded[:-1, :-1] != padded[1:, 1:]  # at a meeting of four: whether these two differ
    single = (around == 1) | (around == 3)
    meeting = (around == 2) & ~across & (padded[:-1, :-1] != padded[:-1, 1:])
    y, x = np.nonzero(single | meeting)
    if len(y) == 0:
        return []
    # Where two pixels touch at a corner, it is passed twice: once round each.
    twice = meeting[y, x]
    y, x = (np.concatenate([values, values[twice]]) for values in (y, x))
    copy = np.concatenate([np.zeros(len(twice), np.int64), np.ones(int(twice.sum()), np.int64)])
    # In a row the first pass is that of the left edge. In a column it is that of the upper edge if
    # the pixel at the top left is inside, and of the lower one if that at the top right is.
    inside = padded[y, x] == 1
    beside = _partners(y, x, copy)
    above = _partners(x, y, np.where(inside, copy, 1 - copy))
    names, _ = ndimage.label(mask)
    outlines: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    left = np.ones(len(y), dtype=bool)
    order = np.lexsort((x, y))
    partners = beside.tolist(), above.tolist()
    for first in order.tolist():
        if not left[first]:
            continue
        walk = [first]
        step = 0
        while (now := partners[step][walk[-1]]) != first:
            walk.append(now)
            step = 1 - step
        left[walk] = False
        corners = np.stack([x[walk], y[walk]], axis=1)
        top, edge = int(y[first]), int(x[first])
        # The topmost corner, and of these the leftmost, has the region or its hole below it.
        if top < mask.shape[0] and edge < mask.shape[1] and mask[top, edge]:
            outlines[int(names[top, edge])] = corners
        else:
            holes.setdefault(int(names[top - 1, edge]), []).append(corners)
    return [Region(outline, holes.get(name, [])) for name, outline in outlines.items()]


def _partners(line: np.ndarray, along: np.ndarray, copy: np.ndarray) -> np.ndarray:
    """The other end of each corner's edge, on lines of one coordinate."""
    order = np.lexsort((copy, along, line))
    partner = np.empty(len(line), dtype=np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner
