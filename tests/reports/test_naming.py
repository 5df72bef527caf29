import numpy as np
import pytest

from densesiam.reports.naming import Categories, read_categories, write_template
from densesiam.reports.visualize import palette


def read(tmp_path, text, count=4):
    path = tmp_path / "names.yaml"
    path.write_text(text)
    return read_categories(path, count)


def test_names_merge_drop_and_choose_colours(tmp_path):
    found = read(
        tmp_path,
        """categories:
  2: {name: grass, colour: "#E69F00"}
  0: "on"
  3: grass
""",
    )
    assert found.names == ["grass", "on", "category 1"]
    assert found.of.tolist() == [1, 2, 0, 0]
    assert not found.drops
    # The palette's first colour is taken, so that the next ones move up.
    assert found.colours.tolist() == palette(3).tolist()
    found = read(tmp_path, "categories: {1: null, 2: {name: a, colour: [1, 2, 3]}, 3: a}")
    assert found.names == ["a", "category 0"]
    assert found.of.tolist() == [1, 255, 0, 0]
    assert found.drops
    assert found.colours.tolist() == [[1, 2, 3], palette(1)[0].tolist()]
    labels = np.array([[0, 1, 2, 3]], np.uint8)
    assert found.apply(labels).tolist() == [[1, 255, 0, 0]]


def test_many_categories_need_another_void():
    plain = Categories.plain(256)
    assert plain.depth is np.uint8
    assert not plain.drops
    labels = np.arange(256, dtype=np.uint8)[None]
    assert plain.apply(labels) is labels
    of = np.arange(300)
    of[7] = 65535
    dropping = Categories(plain.names + ["x"] * 44, palette(300), of)
    assert dropping.drops
    assert dropping.apply(np.array([[7, 8]], np.uint16)).tolist() == [[65535, 8]]


def test_a_template_says_what_there_is(tmp_path):
    before = read(tmp_path, "categories: {0: 'yes: # no', 1: null, 2: 'yes: # no'}", 3)
    write_template(tmp_path / "next.yaml", before, [1.0])
    after = read_categories(tmp_path / "next.yaml", 3)
    assert after.names == before.names
    assert after.of.tolist() == before.of.tolist()


def test_classes_give_names_and_colours():
    found = Categories.called(["road", "sky"], 4, [1, -1, 1, 0])
    assert found.names == ["sky (0)", "category 1", "sky (2)", "road (3)"]
    colours = palette(6)
    assert found.colours.tolist() == colours[[1, 2, 3, 0]].tolist()
    assert Categories.called(["road", "sky"], 2).names == ["road", "sky"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no YAML: expected `categories:`"),
        ("sky", "names no categories: expected `categories:`"),
        ("categories: {9: sky}", "names categories 9; the model has 0 to 3"),
        ("categories: {sky: 1}", "names categories sky; the model has 0 to 3"),
        ("categories: {0: [sky]}", r"category 0: expected a name or null, got \['sky'\]"),
        ("categories: {0: {colour: red}}", r"category 0: expected \{name: ..., colour: ...\}"),
        ("categories: {0: {name: a, colour: reddish}}", "category 0: expected a colour such as"),
        ("categories: {0: {name: a, colour: [1, 2]}}", "category 0: expected a colour such as"),
        (
            "categories: {0: {name: a, colour: red}, 1: {name: b, colour: '#ff0000'}}",
            "gives two categories one colour",
        ),
        ("categories: {0: null, 1: null, 2: null, 3: null}", "drops every category"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of names .*: expected a YAML file"):
        read_categories(tmp_path / "none.yaml", 3)
