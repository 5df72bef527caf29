r"""Segmenting whole images of any size, in memory that does not grow with the network's maps.

An image that is larger than a tile is cut into overlapping tiles. In each axis, a tile's weight
rises linearly over its overlap with the next, from 0 at some distance from the edge, where what the
network sees ends, to 1; and the weights of all tiles at a point are divided by their sum. The
blended logits

.. math:: z(y, x) = \sum_{ij} u_i(y) v_j(x) z_{ij}(y, x), \quad \sum_i u_i = \sum_j v_j = 1

are continuous across tiles: no seams. A network that sees no farther than that distance gives
exactly the logits of the image as a whole; others see less of what is around.

Tiles are computed row by row of tiles, and logits become labels as soon as no further tile reaches
them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from densesiam import ops
from densesiam.data.image.frame import Frame, resample, to_normalised

# Values in one strip of enlarged logits, or of labels: 16 and 32 MB, as float32 and int64.
_STRIP = 1 << 22
# Labels of up to so many pixels are made at once.
_AT_ONCE = 1 << 23
_MARGIN = 8  # the share of an overlap, at each of its ends, that has weight 0: an eighth


@dataclass(frozen=True)
class Segmented:
    """A segmented image.

    Attributes:
        labels: (H, W) categories at the source's size, uint8, or uint16 where there are more than
            256.
        confidence: (H, W) uint8, the softmax's greatest value at each pixel times 255; None where
            it was not asked for.
        cells: (h, w) categories of the network's own cells, of the type of `labels`.
        certainty: (h, w) float32, the softmax's greatest value in each cell, in [0, 1].
        seen: height and width of what the network saw, in pixels, all tiles together.
        tiles: how many tiles there were.
    """

    labels: np.ndarray
    confidence: np.ndarray | None
    cells: np.ndarray
    certainty: np.ndarray
    seen: tuple[int, int]
    tiles: int


@dataclass(frozen=True)
class WholeImages:
    """Segments images of any size.

    Args:
        network: from normalised images (1, 3, h, w) to logits (1, K, ceil(h / stride),
            ceil(w / stride)).
        num_classes: K.
        stride: of its logits, in pixels.
        multiple: sides of tiles, and their distances, are multiples of it: the network's coarsest
            stride.
        device: where the network is.
        resize: the shorter side that the network sees, in pixels; None takes images as they are.
        large: what becomes of images that are larger than a tile: "tile" cuts them up, "reduce"
            makes them smaller.
        tile: longest side that the network sees at once, in pixels.
        overlap: of neighbouring tiles, in pixels, at least; both are rounded up to multiples.
        confidence: give each pixel's confidence too.

    Raises:
        ValueError: a tile that is no larger than the overlap, or an unknown `large`.
    """

    network: Callable[[Tensor], Tensor]
    num_classes: int
    stride: int
    multiple: int
    device: torch.device
    resize: int | None = None
    large: Literal["tile", "reduce"] = "tile"
    tile: int = 1024
    overlap: int = 256
    confidence: bool = False

    def __post_init__(self) -> None:
        if self.large not in ("tile", "reduce"):
            raise ValueError(f'large must be "tile" or "reduce", got {self.large!r}')
        if not 0 < self.overlap < self.tile:
            raise ValueError(
                f"overlap must be at least 1 pixel and below tile, got {self.overlap} and "
                f"{self.tile}"
            )
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize must be at least 1 pixel, got {self.resize}")

    def size(self, source: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the network sees of an image of (width, height) pixels."""
        frame = Frame.of(source, self.resize, None)
        height, width = max(1, round(frame.height)), max(1, round(frame.width))
        if self.large == "reduce" and max(height, width) > self.tile:
            scale = self.tile / max(height, width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
        return height, width

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> Segmented:
        """Segment an 8-bit RGB image."""
        size = self.size(image.size)
        rows, columns = (self._axis(side) for side in size)
        depth = np.uint8 if self.num_classes <= 256 else np.uint16
        cells = np.empty((rows.cells, columns.cells), depth)
        certainty = np.empty((rows.cells, columns.cells), np.float32)
        labels = np.empty((image.height, image.width), depth)
        confidence = np.empty(labels.shape, np.uint8) if self.confidence else None

        def settled() -> Iterator[Tensor]:
            """Rows of logits (K, r, w) that no further tile changes, from the top on."""
            done = 0
            for z in self._blended(image, size, rows, columns):
                best = z.softmax(dim=0).max(dim=0)
                part = slice(done, done + z.shape[1])
                cells[part] = best.indices.cpu().numpy().astype(depth)
                certainty[part] = best.values.float().cpu().numpy()
                done = part.stop
                yield z

        done = 0
        for strip, sure in enlarged(settled(), rows.cells, labels.shape, self.confidence):
            part = slice(done, done + strip.shape[0])
            labels[part] = strip.cpu().numpy().astype(depth)
            if confidence is not None and sure is not None:
                confidence[part] = (sure * 255).round().to(torch.uint8).cpu().numpy()
            done = part.stop
        tiles = len(rows.starts) * len(columns.starts)
        return Segmented(labels, confidence, cells, certainty, size, tiles)

    def _axis(self, side: int) -> "Axis":
        tile, overlap = (
            self.multiple * math.ceil(length / self.multiple)
            for length in (self.tile, self.overlap)
        )
        return Axis.of(
            side, max(tile, overlap + self.multiple), overlap, self.multiple, self.stride
        )

    def _blended(
        self, image: Image.Image, size: tuple[int, int], rows: "Axis", columns: "Axis"
    ) -> Iterator[Tensor]:
        """Logits (K, r, w) of the image, some rows at a time, from the top on."""
        if len(rows.starts) == len(columns.starts) == 1:
            yield self._logits(image, size, (0, 0), size)
            return
        pending = torch.empty(0)
        first = 0  # row of logits that `pending` begins with
        for i, (top, height) in enumerate(zip(rows.starts, rows.lengths, strict=True)):
            start, weight = rows.first_cell(i), rows.weights[i].to(self.device)
            if i and start > first:
                yield pending[:, : start - first]
                pending, first = pending[:, start - first :].clone(), start
            lacking = start + len(weight) - first - (pending.shape[1] if i else 0)
            more = torch.zeros(self.num_classes, lacking, columns.cells, device=self.device)
            pending = torch.cat([pending, more], dim=1) if i else more
            band = pending[:, start - first :]
            for j, (left, width) in enumerate(zip(columns.starts, columns.lengths, strict=True)):
                z = self._logits(image, size, (top, left), (height, width)).float()
                shares = weight[:, None] * columns.weights[j].to(self.device)
                at = columns.first_cell(j)
                band[:, : len(weight), at : at + z.shape[2]] += shares * z
        yield pending

    def _logits(
        self,
        image: Image.Image,
        whole: tuple[int, int],
        corner: tuple[int, int],
        size: tuple[int, int],
    ) -> Tensor:
        """Logits (K, h, w) of a window of the resized image, read straight from the source."""
        down, across = image.height / whole[0], image.width / whole[1]
        (top, left), (height, width) = corner, size
        box = (
            left * across,
            top * down,
            min((left + width) * across, image.width),
            min((top + height) * down, image.height),
        )
        pixels = to_normalised(resample(image, box, size, flip=False))
        z = self.network(pixels[None].to(self.device))
        cells = tuple(math.ceil(side / self.stride) for side in size)
        if tuple(z.shape[2:]) != cells:
            z = F.interpolate(z, cells, mode="bilinear", align_corners=False)
        return z[0]


@dataclass(frozen=True)
class Axis:
    """How tiles lie along one axis.

    Attributes:
        starts: first pixel of each tile.
        lengths: pixels of each tile.
        weights: of each tile's cells, float32; those of all tiles at a cell add up to 1.
        cells: of the whole axis.
        stride: pixels of a cell.
    """

    starts: list[int]
    lengths: list[int]
    weights: list[Tensor]
    cells: int
    stride: int

    def first_cell(self, tile: int) -> int:
        """The cell that a tile begins with."""
        return self.starts[tile] // self.stride

    @classmethod
    def of(cls, side: int, tile: int, overlap: int, multiple: int, stride: int) -> "Axis":
        """Spread as few tiles as will do evenly.

        Args:
            side: length of the axis, in pixels.
            tile: greatest length of a tile; a multiple.
            overlap: least overlap of neighbours; a multiple.
            multiple: of the tiles' starts; itself one of the stride.
            stride: pixels of a cell.
        """
        cells = math.ceil(side / stride)
        if side <= tile:
            return cls([0], [side], [torch.ones(cells)], cells, stride)
        steps = math.ceil((side - tile) / multiple)  # from the first start to the last
        gaps = math.ceil(steps / ((tile - overlap) // multiple))
        starts = [i * steps // gaps * multiple for i in range(gaps + 1)]
        lengths = [min(tile, side - start) for start in starts]
        shared = overlap / stride
        margin = shared / _MARGIN
        total = torch.zeros(cells)
        weights = []
        for start, length in zip(starts, lengths, strict=True):
            count = math.ceil(length / stride)
            centres = torch.arange(count) + 0.5
            weight = torch.ones(count)
            if start > 0:
                weight = ((centres - margin) / (shared - 2 * margin)).clamp(0, 1)
            if start + length < side:
                rest = count - centres
                weight = torch.minimum(
                    weight, ((rest - margin) / (shared - 2 * margin)).clamp(0, 1)
                )
            weights.append(weight)
            total[start // stride : start // stride + count] += weight
        for i, start in enumerate(starts):
            at = start // stride
            weights[i] = weights[i] / total[at : at + len(weights[i])]
        return cls(starts, lengths, weights, cells, stride)


def enlarged(
    logits: Iterator[Tensor], cells: int, size: tuple[int, int], confidence: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Enlarge logits bilinearly and label each pixel, in strips from the top on.

    The same as `ops.label_map` of all logits together, but for rounding.

    Args:
        logits: (K, r, w), some rows at a time, from the top on.
        cells: how many rows there are in all.
        size: height and width to enlarge to.
        confidence: give the softmax's greatest value too.

    Yields:
        Labels (R, W) int64, and the confidence (R, W) or None.
    """
    height, width = size
    rows = ((torch.arange(height, dtype=torch.float64) + 0.5) * (cells / height) - 0.5).clamp_min(0)
    upper = rows.floor().clamp_max(cells - 1).long()
    lower = (upper + 1).clamp_max(cells - 1)
    share = (rows - upper).float()
    done = first = 0  # rows of the result; row of logits that `there` begins with
    there: Tensor | None = None
    for z in logits:
        if there is None and z.shape[1] == cells and height * width <= _AT_ONCE and not confidence:
            yield ops.label_map(z[None].contiguous(), size)[0], None
            return
        there = z if there is None else torch.cat([there, z], dim=1)
        known = int(torch.searchsorted(lower, first + there.shape[1]))  # rows that can be made
        each = max(1, _STRIP // (max(there.shape[2], width if confidence else 0) * z.shape[0]))
        each = max(1, min(each, _STRIP // width))
        while done < known:
            part = slice(done, min(known, done + each))
            w = share[part].to(there)[:, None]
            a, b = (there[:, (index[part] - first).to(there.device)] for index in (upper, lower))
            strip = torch.lerp(a, b, w)[None]
            wanted = (part.stop - done, width)
            sure = None
            if confidence:
                wide = F.interpolate(strip.float(), wanted, mode="bilinear", align_corners=False)
                sure = wide.softmax(dim=1).amax(dim=1)[0]
            yield ops.label_map(strip, wanted)[0], sure
            done = part.stop
        if done < height:
            spent = min(int(upper[done]) - first, there.shape[1])
            there, first = there[:, spent:].clone(), first + spent
