"""Self-contained HTML pages: text, tables and pictures in one file that asks the network nothing.

A page is put together from strings of HTML, which these functions make::

    write_page(
        path,
        "Results",
        [section("Scores", table([Column("class"), Column("IoU", kind="share")], rows))],
    )

Everything given as plain text is escaped; what is HTML says so in its name or type (`Html`).
"""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Literal

from PIL import Image

from densesiam._writing import printable, write_text

_SHOWN = 380  # longest side of a picture on a page, in pixels


class Html(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


Cell = str | int | float | None
"""A value in a table: text, `Html`, a number, or None for what does not exist."""


@dataclass(frozen=True)
class Column:
    """A column of a `table`.

    Args:
        title: its heading.
        kind: how its values are shown: ``"text"``; ``"number"``, right-aligned; ``"share"``, a
            number from 0 to 1 as a percentage with a bar.
        note: an explanation, shown where the pointer rests on the heading.
    """

    title: str
    kind: Literal["text", "number", "share"] = "text"
    note: str = ""


def html(text: Cell) -> Html:
    """Escape plain text; `Html` stays as it is, and None becomes a dash."""
    if isinstance(text, Html):
        return text
    return Html("&ndash;" if text is None else escape(printable(str(text))))


def join(parts: Iterable[Cell]) -> Html:
    """Set pieces one after another."""
    return Html("\n".join(html(part) for part in parts))


def paragraph(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{html(text)}</p>")


def section(title: str, *parts: Html) -> Html:
    """A part of the page below a heading of its own."""
    return Html(f"<section>\n<h2>{html(title)}</h2>\n{join(parts)}\n</section>")


def details(summary: str, *parts: Html) -> Html:
    """A part that opens when its summary is clicked."""
    return Html(f"<details>\n<summary>{html(summary)}</summary>\n{join(parts)}\n</details>")


def facts(entries: Iterable[tuple[str, Cell]]) -> Html:
    """Names and what is to be said of each, as a list of two columns."""
    lines = (f"<dt>{html(name)}</dt><dd>{html(value)}</dd>" for name, value in entries)
    return Html("<dl>\n" + "\n".join(lines) + "\n</dl>")


def cards(entries: Iterable[tuple[str, str, str]]) -> Html:
    """A few numbers in large type.

    Args:
        entries: for each the number as text, its name, and a line of explanation.
    """
    parts = (
        f'<div class="card"><div class="figure">{html(figure)}</div>'
        f'<div class="name">{html(name)}</div><div class="note">{html(note)}</div></div>'
        for figure, name, note in entries
    )
    return Html('<div class="cards">\n' + "\n".join(parts) + "\n</div>")


def swatch(colour: Sequence[int]) -> Html:
    """A small square of a colour (red, green, blue), 0 to 255."""
    red, green, blue = (int(level) for level in colour)
    return Html(f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>')


def legend(entries: Iterable[tuple[Sequence[int], str]]) -> Html:
    """Colours, each with its name."""
    items = (f"<li>{swatch(colour)}{html(name)}</li>" for colour, name in entries)
    return Html('<ul class="legend">' + "".join(items) + "</ul>")


def picture(image: Image.Image, description: str, kind: Literal["png", "jpeg"] = "png") -> Html:
    """A picture, stored in the page itself.

    Args:
        image: the picture.
        description: for those who cannot see it.
        kind: png for drawings, jpeg for photographs.
    """
    stream = io.BytesIO()
    if kind == "jpeg":
        image.convert("RGB").save(stream, "jpeg", quality=85)
    else:
        image.save(stream, "png", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Html(
        f'<img src="data:image/{kind};base64,{data}" alt="{html(description)}" '
        f'width="{image.width}" height="{image.height}">'
    )


def figure(content: Html, caption: str = "") -> Html:
    """Pictures (or any content) with a line below."""
    below = f"<figcaption>{html(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{content}{below}</figure>")


def gallery(figures: Sequence[Html]) -> Html:
    """Figures beside and below each other."""
    return Html(f'<div class="gallery">{join(figures)}</div>')


def strip(title: Html, pictures: Sequence[Html]) -> Html:
    """A line of small pictures behind their title."""
    return Html(f'<div class="strip"><h3>{title}</h3><div>{join(pictures)}</div></div>')


def strips(lines: Sequence[Html]) -> Html:
    """Several of `strip`, beside and below each other."""
    return Html(f'<div class="strips">{join(lines)}</div>')


def compare(photo: Image.Image, painted: Image.Image, name: str, caption: str) -> Html:
    """A photograph with colours over it, and a slider between before and after.

    Args:
        photo: the photograph.
        painted: the colours, of the same size; see `names_of_colours`.
        name: of the photograph.
        caption: a line below.
    """
    below = picture(photo, f"photograph {name}", "jpeg")
    above = picture(painted, f"categories of {name}")
    slider = f'<input type="range" value="50" aria-label="before and after, {html(name)}">'
    return Html(
        f'<figure class="compare"><div class="stage">{below}{above}<output></output></div>'
        f"{slider}<figcaption>{html(caption)}</figcaption></figure>"
    )


def strength() -> Html:
    """A slider for how strong the colours of all `compare` are."""
    return Html(
        '<label class="strength">strength of the colours '
        '<input type="range" value="60" aria-label="strength of the colours"></label>'
    )


def names_of_colours(entries: Iterable[tuple[Sequence[int], str]]) -> Html:
    """What colours in `compare` are called where the pointer rests on them."""
    table = {",".join(str(int(v)) for v in colour): printable(name) for colour, name in entries}
    text = json.dumps(table).replace("<", "\\u003c")  # which would end the script
    return Html(f'<script type="application/json" id="colours">{text}</script>')


def pages(files: Sequence[str], current: int) -> Html:
    """Links to the other pages; nothing where there is one alone.

    Args:
        files: of the pages, in the same folder.
        current: which of them this is.
    """
    if len(files) == 1:
        return Html("")
    links = (
        f"<b>{i + 1}</b>" if i == current else f'<a href="{html(file)}">{i + 1}</a>'
        for i, file in enumerate(files)
    )
    return Html(f"<nav>Pages {' '.join(links)}</nav>")


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[Cell]], footer: Iterable[Sequence[Cell]] = ()
) -> Html:
    """A table, which a click on a heading sorts.

    Args:
        columns: its columns.
        rows: their values, as many as there are columns.
        footer: rows below that stay in place, such as means.
    """
    head = "".join(
        f'<th class="{column.kind}"{_title(column.note)}>'
        f'<button type="button">{html(column.title)}</button></th>'
        for column in columns
    )
    body, foot = (
        "\n".join(
            "<tr>"
            + "".join(_cell(column, value) for column, value in zip(columns, row, strict=True))
            + "</tr>"
            for row in part
        )
        for part in (rows, footer)
    )
    return Html(
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n<tfoot>\n{foot}\n</tfoot>\n</table></div>"
    )


def write_page(path: Path, title: str, parts: Sequence[Html], subtitle: str = "") -> None:
    """Write a page; the file is whole at every moment.

    Args:
        path: the file.
        title: the page's heading, and its name in the browser.
        parts: what it holds, from top to bottom.
        subtitle: a line below the heading.
    """
    assets = files("densesiam.reports") / "assets"
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html(title)}</title>
<link rel="icon" href="data:,">
<style>
{(assets / "page.css").read_text()}</style>
</head>
<body>
<header>
<h1>{html(title)}</h1>
{f"<p>{html(subtitle)}</p>" if subtitle else ""}
</header>
<main>
{join(parts)}
</main>
<script>
{(assets / "page.js").read_text()}</script>
</body>
</html>
"""
    write_text(path, text)


def _title(note: str) -> str:
    return f' title="{escape(note)}"' if note else ""


def _cell(column: Column, value: Cell) -> Html:
    missing = value is None or value != value  # nan
    key = "" if missing or isinstance(value, Html) else f' data-key="{escape(str(value))}"'
    if missing:
        content = html(None)
    elif column.kind == "share" and isinstance(value, int | float):
        percent = f"{100 * value:.1f}"
        content = Html(f'<span class="bar" style="--share:{percent}%"></span>{percent}')
    else:
        content = html(value)
    return Html(f'<td class="{column.kind}"{key}>{content}</td>')


def row(pictures: Sequence[Html]) -> Html:
    """Pictures side by side."""
    return Html(f'<div class="row">{join(pictures)}</div>')


def thumbnail(picture: Image.Image) -> Image.Image:
    """A picture as large as pages show it."""
    small = picture.copy()
    small.thumbnail((_SHOWN, _SHOWN))
    return small
