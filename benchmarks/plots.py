"""Plots of results, as pictures for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.results import CEILING, PEER_NAMES, PEERS, Row

COLOURS = {
    "eager": "#7a8594",
    "compile": "#d1811f",
    "release": "#b0413e",
    "two_ops": "#7d5ba6",
    "by_hand": "#8a6d3b",
    CEILING: "#c4cbd3",
    "cpu": "#0b6bb5",
    "cuda": "#0b6bb5",
    "triton": "#2a9d74",
    "reference": "#444444",
}
LABELS = {**PEER_NAMES, CEILING: "clone of the bytes"}
WIDTH = 10.5  # inches: the page's width at DPI
DPI = 105
FEWEST_LINES = 4  # of room, even where a plot has fewer


def speed_ups(rows: Sequence[Row]) -> Image.Image:
    """How many times faster than each peer, one line a row, for our first backend."""
    rows = [row for row in rows if row.backends]
    figure, axes = _figure(len(rows))
    for y, row in enumerate(rows):
        points = {peer: row.faster(row.backends[0], peer) for peer in PEERS}
        axes.plot(
            [1, max(1, *(p for p in points.values() if p))], [y, y], color="#e3e7ec", zorder=1
        )
        for peer, ratio in points.items():
            if ratio is not None:
                axes.scatter(ratio, y, color=COLOURS[peer], s=34, zorder=2)
    for peer in PEERS:
        if any(row.faster(row.backends[0], peer) for row in rows):
            axes.scatter([], [], color=COLOURS[peer], s=34, label=LABELS[peer])
    axes.axvline(1, color="#1c2430", linewidth=1)
    _log(axes, "x")
    _finish(axes, rows, "times faster than (logarithmic; left of 1 is slower)")
    return _picture(figure)


def ceiling_shares(rows: Sequence[Row]) -> Image.Image:
    """Share of the ceiling, a bar for each of our backends."""
    rows = [row for row in rows if row.backends]
    figure, axes = _figure(len(rows))
    backends = sorted({backend for row in rows for backend in row.backends})
    height = 0.75 / len(backends)
    for k, backend in enumerate(backends):
        shares = [100 * (row.faster(backend, CEILING) or 0.0) for row in rows]
        offset = (k - (len(backends) - 1) / 2) * height
        positions = [y + offset for y in range(len(rows))]
        axes.barh(positions, shares, height, color=COLOURS[backend], label=backend)
    axes.axvline(100, color="#1c2430", linewidth=1)
    _finish(axes, rows, "% of the speed of torch.clone on the same bytes")
    return _picture(figure)


def scaling(rows: Sequence[Row], axis: str) -> Image.Image:
    """Milliseconds over the number that a group varies, a panel for each operation.

    Args:
        rows: of one group, all with an x.
        axis: what varies, for the axis's name.
    """
    names = list(dict.fromkeys(row.op for row in rows))
    columns = 4
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 2.5 * lines), dpi=DPI, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        own = sorted((row for row in rows if row.op == name), key=lambda row: row.x or 0)
        candidates = list(dict.fromkeys(who for row in own for who in row.milliseconds))
        for who in candidates:
            measured = [(row.x, row.milliseconds[who]) for row in own if who in row.milliseconds]
            x = [x for x, _ in measured]
            panel.fill_between(
                x, [t.low for _, t in measured], [t.high for _, t in measured],
                color=COLOURS[who], alpha=0.2, linewidth=0,
            )  # fmt: skip
            panel.plot(
                x, [t.median for _, t in measured], marker="o", markersize=3,
                color=COLOURS[who], label=LABELS.get(who, who),
            )  # fmt: skip
        _log(panel, "x", "y")
        panel.set_xticks([row.x for row in own], [f"{row.x:g}" for row in own])
        panel.minorticks_off()
        panel.set_title(name, fontsize=9)
        panel.grid(color="#edf0f3")
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    handles = {
        label: handle
        for panel in panels[: len(names)]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.supxlabel(axis, fontsize=9)
    figure.supylabel("ms, forward and backward", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=6, fontsize=8)
    return _picture(figure)


def _figure(lines: int) -> tuple[Figure, Axes]:
    height = 1.1 + 0.27 * max(lines, FEWEST_LINES)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _log(axes: Axes, *which: str) -> None:
    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        getattr(axes, f"{name}axis").set_major_formatter(lambda value, _: f"{value:g}")


def _finish(axes: Axes, rows: Sequence[Row], title: str) -> None:
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(title, fontsize=9)
    axes.grid(axis="x", color="#edf0f3")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    above = 1 + 1.4 / max(len(rows), FEWEST_LINES)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, above), ncols=5, fontsize=8)


def _label(row: Row) -> str:
    last = ", channels last" if row.layout == "channels_last" else ""
    return f"{row.op}: {row.name}{last}"


def _picture(figure: Figure) -> Image.Image:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    stream.seek(0)
    return Image.open(stream).convert("RGB").quantize(64)
