from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from densesiam.data import ImageReadError, find_images, read_image, read_label
from densesiam.data.image import files
from tests.data.support import noise, save_images

RAMP16 = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_finds_nested_images_in_a_set_order(tmp_path):
    for name in ("b.PNG", "a/z.jpg", "a/y/x.webp", "c.tiff", "a.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise(4, 4).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._b.png").write_text("hidden")
    (tmp_path / ".cache").mkdir()
    noise(4, 4).save(tmp_path / ".cache" / "d.png")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/y/x.webp", "a/z.jpg", "a.bmp", "b.PNG", "c.tiff"]


def test_follows_links(tmp_path):
    save_images(tmp_path / "real", [(4, 4)])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "real")
    assert [path.name for path in find_images(tmp_path / "set")] == ["0.png"]


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder of images: .*nowhere"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="it is empty"):
        find_images(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"1 other files; expected any of \.bmp"):
        find_images(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"got a file: .*a\.txt"):
        find_images(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("1", "a.png"),
        ("L", "a.png"),
        ("L", "a.jpg"),
        ("LA", "a.png"),
        ("P", "a.png"),
        ("P", "a.gif"),
        ("RGB", "a.bmp"),
        ("RGB", "a.webp"),
        ("RGB", "a.jp2"),
        ("RGBA", "a.png"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("YCbCr", "a.tif"),
    ],
)
def test_modes(tmp_path, mode, name):
    colour = Image.new("RGB", (32, 24), (200, 60, 20))
    colour.paste((20, 60, 200), (16, 0, 32, 24))
    original = colour.convert(mode)
    original.save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    with Image.open(tmp_path / name) as file:
        assert file.mode == mode
    image = read_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (32, 24))
    expected = np.asarray(original.convert("RGB"), int)
    # JPEG rounds the coefficients of its 8 x 8 blocks: a few grey levels in plain areas.
    tolerance = 4 if name == "a.jpg" else 0
    assert abs(np.asarray(image, int) - expected).max() <= tolerance


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_keeps_its_high_byte(tmp_path, name):
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 16 16 65535\n" + RAMP16.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP16).save(tmp_path / name)
    assert np.array_equal(np.asarray(read_image(tmp_path / name))[..., 1], RAMP8)


def test_transparency_lies_over_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 255, 255))
    rgba.save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [[[255] * 3, [0, 0, 255]]]
    palette = Image.frombytes("P", (2, 1), bytes([0, 1]))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(read_image(tmp_path / "p.png")).tolist() == [[[255] * 3, [0, 0, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 8))  # red top left corner
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(upright))


def test_unreadable_images_are_named(tmp_path):
    noise(64, 64).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "wide.tif")
    reasons = {
        "cut.jpg": "truncated",
        "text.png": "cannot identify",
        "empty.png": "cannot identify",
        "missing.png": "No such file",
        "float.tif": "floating-point pixels have no set range",
        "wide.tif": "integer values from 70000 to 70000 exceed 16 bits",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageReadError, match=rf"cannot read image .*{name}: .*{reason}"):
            read_image(tmp_path / name)


@pytest.fixture
def clock(monkeypatch):
    """Time that only waiting lets pass; ``then`` is what happens at a moment."""
    clock = SimpleNamespace(now=1000.0, then={})
    monkeypatch.setattr(files.Patience, "lost", -1e9)

    def sleep(seconds):
        clock.now += seconds
        for moment in [moment for moment in clock.then if moment <= clock.now]:
            clock.then.pop(moment)()

    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(files, "time", fake)
    return clock


@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_folder_that_is_away_for_a_moment(read, tmp_path, clock):
    Image.fromarray(RAMP8).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "away")
    clock.then[1000.45] = lambda: (tmp_path / "away").rename(tmp_path / "a.png")
    assert np.asarray(read(tmp_path / "a.png")).shape[:2] == (16, 16)
    assert clock.now == 1000.5


def test_what_is_gone_is_waited_for_once_a_minute(tmp_path, clock):
    waited = []
    for _ in range(3):
        before = clock.now
        with pytest.raises(ImageReadError, match="No such file"):
            read_image(tmp_path / "gone.png")
        waited.append(round(clock.now - before, 3))
        clock.now += 31
    assert waited == [2.0, 0.0, 2.0]


def test_damaged_files_are_not_waited_for(tmp_path, clock):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageReadError, match="cannot identify"):
        read_image(tmp_path / "text.png")
    assert clock.now == 1000.0


def test_labels_keep_their_values(tmp_path):
    Image.fromarray(RAMP8).save(tmp_path / "grey.png")
    palette = Image.frombytes("P", (16, 16), RAMP8.tobytes())
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(RAMP16).save(tmp_path / "wide.png")
    assert np.array_equal(read_label(tmp_path / "grey.png"), RAMP8)
    assert np.array_equal(read_label(tmp_path / "palette.png"), RAMP8)
    assert np.array_equal(read_label(tmp_path / "wide.png"), RAMP16)
    noise(4, 4).save(tmp_path / "colour.png")
    with pytest.raises(ImageReadError, match=r"colour\.png: expected one channel .* got mode RGB"):
        read_label(tmp_path / "colour.png")
    (tmp_path / "bad.png").touch()
    with pytest.raises(ImageReadError, match=r"cannot read label .*bad\.png: cannot identify"):
        read_label(tmp_path / "bad.png")
