import itertools
import os

import pytest

from densesiam.data.sets.gathered import gather, result_names
from tests.data.support import noise, save_images


def test_names_are_unique_whatever_there_is():
    parts = ["a", "a.jpg", "a.png", "a.jpg.jpg", "a.jpg.png", "b/a.jpg", "b/a", ".jpg", "b.tar.gz"]
    for count in range(1, len(parts) + 1):
        for files in itertools.combinations(parts, count):
            names = result_names(files)
            assert len(set(names)) == count
            for file, name in zip(files, names, strict=True):
                assert name in (file, file.rpartition(".")[0])
    assert result_names(["x/a.jpg", "x/b.png", "y/a.jpg"]) == ["x/a", "x/b", "y/a"]


def test_long_names_leave_room_for_extensions():
    long = ["x" * 251 + ".png", "x" * 251 + ".jpg", "日" * 83 + ".png", "d/" + "y" * 251 + ".tif"]
    names = result_names([*long, "short.png"])
    assert names[-1] == "short"
    assert len(set(names)) == 5
    for file, name in zip(long, names[:-1], strict=True):
        assert len(os.fsencode(f"{name}.json".rpartition("/")[2])) <= 255
        assert name.startswith(file[:40])


def test_links_to_one_file_count_once_over_all_sources(tmp_path):
    folder = save_images(tmp_path / "set", [(4, 4)])
    (tmp_path / "link.png").symlink_to(folder / "0.png")
    (folder / "self").symlink_to(folder)
    found = gather([str(folder), str(tmp_path / "link.png"), str(folder / "0.png")])
    assert [(photo.path, photo.name) for photo in found.photos] == [(folder / "0.png", "set/0")]
    assert found.repeated == [folder / "self", tmp_path / "link.png", folder / "0.png"]


def test_nothing_to_segment(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no images in .*, 1 other files; expected any"):
        gather([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="nothing matches the pattern none"):
        gather([str(tmp_path), "none*.png"])


def test_a_file_given_by_name_needs_no_extension_that_is_known(tmp_path):
    noise(4, 4).save(tmp_path / "photo.x", format="png")
    assert [photo.name for photo in gather([str(tmp_path / "photo.x")]).photos] == ["photo"]
