"""Pictures of segmentations: colours, overlays, legends and contact sheets."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# The colours of Okabe and Ito (2008), known to be told apart by colour-blind readers, open the
# palette; without their black, which reads as a hole in an overlay.
_OKABE_ITO = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
_VOID = (128, 128, 128)
_DARKEST = 0.3  # Oklab lightness; what is darker than this looks black in an overlay
# Distances are the least of those seen with normal vision, protanopia and deuteranopia. Normal
# vision has a dimension more; counted alike, it would get a palette of thirty blues and browns.
_VISION_WEIGHTS = np.array([0.5, 1.0, 1.0])

# Linear RGB as seen with full protanopia and deuteranopia (Machado et al. 2009, severity 1).
_COLOUR_VISION = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    ]
)

# Oklab (Ottosson 2020), in which distance follows perceived difference.
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

_MARGIN = 8
_WIDEST = 4  # a picture on a sheet is no wider than so many heights
_HEAT_MAP = 3200  # longest side of a heat map's cells together, in pixels
_READABLE = 18  # a cell that has room for a number, and a line for a name
_CHARACTERS = 60  # of a name in a picture
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont  # what Pillow loads, by how it was built


def _appearance(colours: np.ndarray) -> np.ndarray:
    """Oklab coordinates (3, N, 3) of sRGB bytes (N, 3), seen with three kinds of vision."""
    srgb = colours / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("vij,nj->vni", _COLOUR_VISION, linear), 0, 1)
    return np.cbrt(seen @ _RGB_TO_LMS.T) @ _LMS_TO_OKLAB.T


@cache
def _greedy_palette(count: int) -> np.ndarray:
    levels = np.arange(0, 256, 17)  # 16 levels a channel: 4096 candidates
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    candidates = candidates[_appearance(candidates)[0, :, 0] >= _DARKEST]
    looks = _appearance(candidates)

    def distance(colour: Sequence[int]) -> np.ndarray:
        apart = np.linalg.norm(looks - _appearance(np.array([colour])), axis=-1)
        return (_VISION_WEIGHTS[:, None] * apart).min(axis=0)

    chosen: list[Sequence[int]] = [tuple(bytes.fromhex(code)) for code in _OKABE_ITO]
    nearest = np.min([distance(colour) for colour in (*chosen, _VOID)], axis=0)
    while len(chosen) < count:
        chosen.append(candidates[nearest.argmax()])
        nearest = np.minimum(nearest, distance(chosen[-1]))
    return np.array(chosen[:count], dtype=np.uint8).reshape(count, 3)


def palette(count: int) -> np.ndarray:
    """Distinct colours, the same ones in every run; a shorter palette opens every longer one.

    The first seven are Okabe and Ito's. Each further one is the candidate farthest (in Oklab) from
    all before it and from the grey of void, where the distance is the (weighted) least of those
    seen with normal vision, protanopia and deuteranopia. No thirty colours are safe for every
    reader; these are spread as far as the cube allows.

    Args:
        count: number of colours, at least 0.

    Returns:
        sRGB (count, 3), uint8.
    """
    return _greedy_palette(count).copy()


def colorize(
    labels: np.ndarray,
    num_clusters: int,
    ignore_index: int = 255,
    colours: np.ndarray | None = None,
) -> Image.Image:
    """Paint a map of cluster numbers.

    Args:
        labels: cluster numbers (H, W), integer, 0 .. num_clusters - 1 or `ignore_index`.
        num_clusters: number of colours to choose from.
        ignore_index: label painted grey.
        colours: sRGB (num_clusters, 3), uint8; the `palette` by default.

    Returns:
        RGB picture (W x H).

    Raises:
        ValueError: where `labels` is no (H, W) map or holds other numbers.
    """
    if labels.ndim != 2:
        raise ValueError(f"colorize: labels must be (H, W), got {labels.shape}.")
    void = labels == ignore_index
    wrong = ~void & ((labels < 0) | (labels >= num_clusters))
    if wrong.any():
        raise ValueError(
            f"colorize: label {labels[wrong][0]} is not in 0 .. {num_clusters - 1}, "
            f"nor the ignored {ignore_index}."
        )
    colours = palette(num_clusters) if colours is None else colours
    with_void = np.concatenate([colours, [_VOID]]).astype(np.uint8)
    return Image.fromarray(with_void[np.where(void, num_clusters, labels)])


def overlay(
    image: Image.Image,
    labels: np.ndarray,
    num_clusters: int,
    opacity: float = 0.6,
    ignore_index: int = 255,
    colours: np.ndarray | None = None,
) -> Image.Image:
    """Lay the colours of a segmentation over its photograph.

    Args:
        image: photograph (W x H).
        labels: cluster numbers (H, W), integer; `ignore_index` leaves the photograph bare.
        num_clusters: number of colours to choose from.
        opacity: 0 shows the photograph alone, 1 the colours alone.
        ignore_index: label of pixels left bare.
        colours: sRGB (num_clusters, 3), uint8; the `palette` by default.

    Returns:
        RGB picture (W x H).

    Raises:
        ValueError: where image and labels differ in size.
    """
    if image.size != labels.shape[::-1]:
        raise ValueError(
            f"overlay: the image is {image.size[0]} x {image.size[1]} pixels, "
            f"the labels {labels.shape[1]} x {labels.shape[0]}; they must be of one size."
        )
    photo = image.convert("RGB")
    painted = Image.blend(photo, colorize(labels, num_clusters, ignore_index, colours), opacity)
    painted.paste(photo, mask=Image.fromarray(labels == ignore_index))
    return painted


def legend(names: Sequence[str], colours: np.ndarray | None = None) -> Image.Image:
    """Name the colours: one swatch and one name a line.

    Args:
        names: what each colour stands for.
        colours: sRGB (at least len(names), 3), uint8; the `palette` by default.

    Returns:
        RGB picture, white behind.
    """
    colours = palette(len(names)) if colours is None else colours
    names = [_short(name) for name in names]
    font = ImageFont.load_default(size=14)
    line = 22
    width = max((int(font.getlength(name)) for name in names), default=0) + line + 3 * _MARGIN
    sheet = Image.new("RGB", (width, line * len(names) + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        top = _MARGIN + i * line
        draw.rectangle(
            (_MARGIN, top + 3, _MARGIN + line, top + line - 3),
            fill=tuple(int(level) for level in colours[i]),
            outline="grey",
        )
        draw.text((2 * _MARGIN + line, top + line / 2), name, "black", font, anchor="lm")
    return sheet


def heat_map(
    shares: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str = "",
    column_title: str = "",
) -> Image.Image:
    """Draw a table of shares as cells from white (0) to blue (1), with whole percentages in them.

    Args:
        shares: values from 0 to 1, (R, C); a row of nan is left blank, as what it shares out is
            nothing.
        rows: names of the R rows.
        columns: names of the C columns, written upright above them.
        row_title: what the rows are.
        column_title: what the columns are.

    Returns:
        RGB picture, white behind.
    """
    cell = 34 if max(shares.shape) <= 16 else max(1, min(26, _HEAT_MAP // max(shares.shape)))
    rows, columns = [_short(name) for name in rows], [_short(name) for name in columns]
    if cell < _READABLE:
        rows, columns = [""] * len(rows), [""] * len(columns)
    font, small = (
        ImageFont.load_default(size=13),
        ImageFont.load_default(size=max(1, cell * 3 // 8)),
    )
    left = 3 * _MARGIN + max(int(font.getlength(name)) for name in rows) + 16
    top = 3 * _MARGIN + max(int(font.getlength(name)) for name in columns) + 16
    width = left + cell * len(columns) + _MARGIN
    sheet = Image.new("RGB", (width, top + cell * len(rows) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((left, _MARGIN), column_title, "grey", font)
    for j, name in enumerate(columns):
        _draw_upright(sheet, name, (left + j * cell + cell // 2, top - _MARGIN // 2), font)
    turned = Image.new("RGB", (cell * len(rows), 20), "white")
    ImageDraw.Draw(turned).text((turned.width, 0), row_title, "grey", font, anchor="ra")
    sheet.paste(turned.rotate(90, expand=True), (_MARGIN, top))
    for i, name in enumerate(rows):
        y = top + i * cell
        draw.text((left - _MARGIN, y + cell / 2), name, "black", font, anchor="rm")
        for j in range(len(columns)):
            x, share = left + j * cell, shares[i, j]
            blank = np.isnan(share)
            draw.rectangle((x, y, x + cell, y + cell), _heat(0 if blank else share), "#e4e8ec")
            if not blank and share >= 0.005 and cell >= _READABLE:
                ink = "white" if share > 0.55 else "#1c2430"
                middle = (x + cell / 2, y + cell / 2)
                draw.text(middle, f"{100 * share:.0f}", ink, small, anchor="mm")
    return sheet


def _heat(share: float) -> tuple[int, int, int]:
    """A colour between white and blue."""
    white, blue = np.array([255, 255, 255]), np.array([11, 91, 165])
    red, green, blue_ = np.round(white + share**0.7 * (blue - white)).astype(int).tolist()
    return red, green, blue_


def _draw_upright(sheet: Image.Image, text: str, foot: tuple[int, int], font: _Font) -> None:
    """Write text from bottom to top, its start at the foot."""
    strip = Image.new("RGB", (int(font.getlength(text)) + 2, 18), "white")
    ImageDraw.Draw(strip).text((0, strip.height / 2), text, "black", font, anchor="lm")
    strip = strip.rotate(90, expand=True)
    sheet.paste(strip, (foot[0] - strip.width // 2, foot[1] - strip.height))


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str] | None = None,
    height: int = 160,
    rows_across: int = 1,
) -> Image.Image:
    """Set pictures side by side on one white sheet, for example photograph | segmentation.

    Args:
        rows: pictures that belong together; each row is scaled to one height, but for pictures that
            would be wider than four times that.
        titles: a line above each row.
        height: height of every picture, in pixels.
        rows_across: how many rows stand next to each other.

    Returns:
        RGB picture.

    Raises:
        ValueError: where there is nothing to show, or not one title per row.
    """
    if not rows:
        raise ValueError("contact_sheet: no pictures were given.")
    if titles is not None and len(titles) != len(rows):
        raise ValueError(
            f"contact_sheet: {len(titles)} titles for {len(rows)} rows; give one each."
        )
    strips = [
        _strip(row, None if titles is None else titles[i], height) for i, row in enumerate(rows)
    ]
    cell_width = max(strip.width for strip in strips) + _MARGIN
    cell_height = strips[0].height + _MARGIN
    down = -(-len(strips) // rows_across)
    across = min(rows_across, len(strips))
    sheet = Image.new("RGB", (across * cell_width + _MARGIN, down * cell_height + _MARGIN), "white")
    for i, strip in enumerate(strips):
        x, y = i // down, i % down  # fill one column before the next, as text is read
        sheet.paste(strip, (_MARGIN + x * cell_width, _MARGIN + y * cell_height))
    return sheet


def _short(name: str) -> str:
    """A name that pictures have room for."""
    return name if len(name) <= _CHARACTERS else f"{name[: _CHARACTERS - 3]}..."


def _strip(pictures: Sequence[Image.Image], title: str | None, height: int) -> Image.Image:
    """Pictures scaled to one height side by side, below their title."""
    scaled = []
    for picture in pictures:
        scale = min(height / picture.height, _WIDEST * height / picture.width)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        scaled.append(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    top = 0 if title is None else 20
    gap = _MARGIN // 2
    width = sum(picture.width + gap for picture in scaled) - gap
    strip = Image.new("RGB", (width, top + height), "white")
    if title is not None:
        ImageDraw.Draw(strip).text((0, 2), _short(title), "black", ImageFont.load_default(size=14))
    left = 0
    for picture in scaled:
        strip.paste(picture, (left, top))
        left += picture.width + gap
    return strip
