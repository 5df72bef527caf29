import re

import pytest
from PIL import Image

from densesiam.reports import page
from densesiam.reports.page import Column, Html
from tests.browser import needs_browser, open_page

COLUMNS = [Column("class"), Column("pixels", "number"), Column("IoU", "share", "a note")]
ROWS = [["cat & dog", 9, 0.25], ["<road>", 10, None], ["sky", 100, 0.5], ["tree", 2, float("nan")]]


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "example.html"
    photo = Image.linear_gradient("L").resize((60, 40))
    parts = [
        page.cards([("12.3 %", "mIoU", "a line & more")]),
        page.section("Scores", page.table(COLUMNS, ROWS, footer=[["all", 121, 0.4]])),
        page.section(
            "Pictures",
            page.figure(page.picture(photo, 'a "grey" ramp'), "below <it>"),
            page.picture(photo, "a photograph", "jpeg"),
            page.legend([((255, 0, 0), "cat"), ((0, 0, 255), "sky")]),
            page.details("More", page.facts([("matching", "Hungarian")]), page.paragraph("Text.")),
        ),
    ]
    page.write_page(path, "An <example>", parts, "with a subtitle")
    return path


def test_plain_text_is_escaped_and_html_is_not(example):
    text = example.read_text()
    assert "<title>An &lt;example&gt;</title>" in text
    assert "<h1>An &lt;example&gt;</h1>" in text
    assert "<example>" not in text
    assert "below &lt;it&gt;" in text
    assert "a line &amp; more" in text
    assert "&lt;road&gt;" in text
    assert "<road>" not in text
    assert 'alt="a &quot;grey&quot; ramp"' in text
    assert page.html(Html("<b>")) == "<b>"
    assert page.html("<b>") == "&lt;b&gt;"


def test_shares_are_percentages_and_what_is_missing_is_a_dash(example):
    cells = re.findall(r'<td class="share"[^>]*>(.*?)</td>', example.read_text())
    assert [re.sub("<.*?>", "", cell) for cell in cells] == [
        "25.0",
        "&ndash;",
        "50.0",
        "&ndash;",
        "40.0",
    ]


def test_a_page_asks_for_nothing(example):
    sources = re.findall(r'(?:src|href)="(.{5})', example.read_text())
    assert sources == ["data:"] * 3
    assert "url(" not in example.read_text()


def test_rows_have_as_many_values_as_columns():
    with pytest.raises(ValueError, match="zip"):
        page.table(COLUMNS, [["cat", 3]])


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it(example, tmp_path, width):
    seen = open_page(example, tmp_path, width=width)
    assert seen.wrong == []
    assert seen.requests == []
    assert [tuple(image[:2]) for image in seen.images] == [(60, 40)] * 2
    assert all(image[2] == 60 for image in seen.images)
    assert seen.overflow <= 0
    assert "below <it>" in seen.text


@needs_browser
def test_headings_sort_their_table(example, tmp_path):
    script = """
    const rows = () => [...document.querySelectorAll("tbody tr")].map(r => r.cells[0].innerText);
    const heads = document.querySelectorAll("th button");
    window.result = [];
    for (const i of [1, 1, 2, 2, 0]) { heads[i].click(); result.push(rows()); }
    result.push([document.querySelector("tfoot").innerText.split("\\t")[0]]);"""
    seen = open_page(example, tmp_path, script)
    assert seen.wrong == []
    assert seen.result == [
        ["tree", "cat & dog", "<road>", "sky"],
        ["sky", "<road>", "cat & dog", "tree"],
        ["cat & dog", "sky", "<road>", "tree"],
        ["sky", "cat & dog", "<road>", "tree"],
        ["<road>", "cat & dog", "sky", "tree"],
        ["all"],
    ]


@needs_browser
def test_the_browser_would_tell_of_faults(example, tmp_path):
    broken = tmp_path / "broken.html"
    text = example.read_text().replace("base64,iVBOR", "base64,AAAAA", 1)
    broken.write_text(text.replace('"use strict";', "missing();", 1))
    seen = open_page(broken, tmp_path)
    assert any("missing is not defined" in line for line in seen.wrong)
    assert [image[0] for image in seen.images] == [0, 60]
