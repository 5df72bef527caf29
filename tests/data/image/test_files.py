import os
import struct
import subprocess
import sys
import zlib
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from densesiam.data import ImageReadError, find_images, read_image, read_label
from densesiam.data.image import files, values
from densesiam.data.image.files import read_header, scan_folder
from densesiam.data.image.lazy import LazyImage
from tests.data.support import STORED, noise, save_images

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


def test_links_never_lead_in_a_circle_and_count_once(tmp_path):
    photos = save_images(tmp_path / "set" / "b", [(4, 4), (4, 4)])
    (tmp_path / "set" / "self").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "a").symlink_to(photos)  # found before the folder itself
    (tmp_path / "set" / "c.png").symlink_to(photos / "0.png")
    (tmp_path / "set" / "gone.png").symlink_to(tmp_path / "nothing.png")
    scan = scan_folder(tmp_path / "set")
    found = [path.relative_to(scan.root).as_posix() for path in scan.images]
    assert found == ["b/0.png", "b/1.png", "gone.png"]
    assert sorted(path.name for path in scan.repeated) == ["a", "c.png", "self"]
    each = [path.relative_to(scan.root).as_posix() for path in find_images(scan.root, links="each")]
    assert each == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "c.png", "gone.png"]


def test_unknown_kinds_are_counted(tmp_path):
    save_images(tmp_path, [(4, 4)])
    for name in ("a.HEIC", "b.heic", "c.txt", "README", ".hidden"):
        (tmp_path / name).touch()
    scan = scan_folder(tmp_path)
    assert [path.name for path in scan.images] == ["0.png"]
    assert scan.others == {".heic": 2, ".txt": 1, "": 1}


@pytest.mark.parametrize(
    "marks", [["predictions.jsonl"], ["config.yaml", "checkpoints"], ["scores.json", "report.html"]]
)
def test_results_are_no_photographs(tmp_path, marks):
    save_images(tmp_path, [(4, 4)])
    results = save_images(tmp_path / "outputs" / "x" / "pictures", [(4, 4)]).parent
    assert len(find_images(tmp_path)) == 2
    for name in marks:
        (results / name).touch()
    scan = scan_folder(tmp_path)
    assert scan.images == [tmp_path / "0.png"]
    assert scan.own == [results]
    assert len(find_images(results)) == 1  # asked for by name


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


def write_deep(path, values, bits=None):
    """A PNG or TIFF of 16 bits a channel, which declares how many of them are in use, or not."""
    if path.suffix == ".tif":
        tags = [] if bits is None else [(281, "H", 1, 2**bits - 1, True)]
        packing = {"b.tif": {"compression": "zlib"}, "c.tif": {"byteorder": ">"}}
        more = packing.get(path.name, {})
        tifffile.imwrite(path, values, photometric="rgb", extratags=tags, **more)
        return
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", *values.shape[1::-1], 16, 2, 0, 0, 0)),
        *([] if bits is None else [(b"sBIT", bytes([bits] * 3))]),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in values.astype(">u2")))),
        (b"IEND", b""),
    ]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "b.tif", "c.tif"])
@pytest.mark.parametrize(
    ("used", "declared", "kept"),
    [(16, None, 16), (12, None, 12), (12, 12, 12), (14, 14, 14), (10, 10, 10), (10, 16, 16)],
)
def test_bits_in_use(tmp_path, name, used, declared, kept):
    """What a file declares, else 12 where they are enough."""
    values = np.random.default_rng(0).integers(0, 1 << used, (6, 8, 3), dtype=np.uint16)
    write_deep(tmp_path / name, values, declared)
    found = np.asarray(read_image(tmp_path / name))
    assert np.array_equal(found, values >> (kept - 8))


def test_12_bits_of_grey(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        assert np.array_equal(np.asarray(read_image(tmp_path / name))[..., 0], RAMP8)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 255])
def test_floating_point(tmp_path, kind, scale):
    values = (RAMP8 / 255 * scale).astype(kind)
    values[0, 0] = np.nan  # no value: white
    tifffile.imwrite(tmp_path / "a.tif", values)
    found = np.asarray(read_image(tmp_path / "a.tif"))[..., 0]
    assert found[0, 0] == 255
    assert np.array_equal(found.ravel()[1:], RAMP8.ravel()[1:])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_bands_beyond_red_green_and_blue(tmp_path, kind, layout):
    bands = np.random.default_rng(0).integers(0, 256, (6, 8, 6), dtype=np.uint8)
    stored = bands.astype(kind) * (257 if kind is np.uint16 else 1)
    if layout == "separate":
        stored = np.moveaxis(stored, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=layout)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tif")), bands[..., :3])


@pytest.mark.parametrize("name", ["a.avif", "a.jfif", "a.tga"])
def test_more_kinds(tmp_path, name):
    picture = Image.new("RGB", (16, 8), (200, 60, 20))
    picture.save(tmp_path / name, **({"format": "jpeg"} if name == "a.jfif" else {}))
    assert find_images(tmp_path) == [tmp_path / name]
    # Both lossy formats keep a plain colour to a few levels.
    difference = np.asarray(read_image(tmp_path / name), int) - np.asarray(picture, int)
    assert abs(difference).max() <= 4


def test_headers(tmp_path):
    noise(8, 6).save(tmp_path / "a.png")
    frames = [noise(8, 6, i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((6, 8)))  # which Pillow does not know
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.tif"):
        noise(6, 8).save(tmp_path / name, exif=exif)
    found = {path.name: read_header(path) for path in sorted(tmp_path.iterdir())}
    assert {header.size for header in found.values()} == {(8, 6)}
    pages = {name: (header.pages, header.page) for name, header in found.items()}
    assert pages["a.gif"] == (3, "frame")
    assert pages["a.tif"] == (3, "page")
    assert pages["a.png"] == (1, "frame")
    assert [name for name, header in found.items() if header.turned] == ["turned.jpg", "turned.tif"]
    for path in tmp_path.iterdir():
        assert read_image(path).size == (8, 6)
        stored = (6, 8) if path.name == "turned.jpg" else (8, 6)  # Pillow turns TIFFs itself
        assert read_image(path, upright=False).size == stored == found[path.name].stored


def test_large_images_are_refused_before_they_are_decoded(tmp_path):
    noise(40, 30).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:100])  # which cannot be decoded
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageReadError, match=r"40 x 30 pixels are more than the limit of 1,199"):
        read_image(tmp_path / "a.png", max_pixels=1199)
    (tmp_path / "a.png").write_bytes(whole)
    assert read_image(tmp_path / "a.png", max_pixels=1200).size == (40, 30)
    assert before == Image.MAX_IMAGE_PIXELS


def test_transparency_lies_over_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 255, 255))
    rgba.save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [[[255] * 3, [0, 0, 255]]]
    palette = Image.frombytes("P", (2, 1), bytes([0, 1]))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(read_image(tmp_path / "p.png")).tolist() == [[[255] * 3, [0, 0, 255]]]


@pytest.mark.parametrize("large", [False, True, "without room"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path, orientation, large, monkeypatch):
    if large:  # turned in strips of five rows of 32 pixels, ten of 16
        monkeypatch.setattr(files, "_TURNED_IN_MEMORY", 0)
        monkeypatch.setattr(files, "_STRIP", 5 * 32)
    if large == "without room":
        monkeypatch.setattr(files.tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 8))  # red top left corner
    how = STORED[orientation]
    stored = upright if how is None else upright.transpose(how)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(found), np.asarray(upright))
    assert found.getexif().get(0x0112, 1) == 1


def test_a_large_image_is_not_in_memory_twice_while_it_is_turned(tmp_path):
    width, height = 6000, 4000
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (width, height), "olive").save(tmp_path / "a.jpg", exif=exif)
    code = r"""
import re, sys
from pathlib import Path
from densesiam.data.image import files, values

files._TURNED_IN_MEMORY = 1 << 20
def peak():
    # getrusage's maximum is the parent's too.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

small, large = sys.argv[1:]
files.read_image(small)  # what is loaded and kept on first use
before = peak()
files.read_image(large)
print(peak() - before)
"""
    noise(2000, 1000).save(tmp_path / "small.jpg", exif=exif)
    program = [sys.executable, "-c", code, tmp_path / "small.jpg", tmp_path / "a.jpg"]
    grown = int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    decoded = 4 * width * height  # as Pillow holds RGB
    # A strip is there as cut out, turned, as bytes and as an image again: 4 + 4 + 3 + 4 bytes.
    assert 0.8 * decoded < grown < decoded + 15 * files._STRIP + (4 << 20)


def test_unreadable_images_are_named(tmp_path):
    noise(64, 64).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.full((4, 4), -1, np.float32)).save(tmp_path / "float.tif")
    bands = np.zeros((4, 4, 8), np.uint8)
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "wide.tif")
    reasons = {
        "cut.jpg": "truncated",
        "text.png": "cannot identify",
        "empty.png": "cannot identify",
        "missing.png": "No such file",
        "float.tif": "floating-point values from -1 to -1; expected 0 to 1 or 0 to 255",
        "bands.tif": "8 bands, and the file does not say which are red, green and blue",
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


def chunk(kind, content):
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def test_heads_of_pngs_are_read_without_their_pixels(tmp_path, monkeypatch):
    """Also where EXIF data stand behind these; a PNG of gigabytes is refused by its size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(6, 4).save(tmp_path / "before.png", exif=exif)
    noise(6, 4).save(tmp_path / "plain.png")
    whole = (tmp_path / "plain.png").read_bytes()
    at = whole.index(b"IEND") - 4
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "behind.png").write_bytes(whole[:at] + late + whole[at:])
    shape = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    chunks = chunk(b"IHDR", shape), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(whole[:8] + b"".join(chunks))
    with monkeypatch.context() as patch:
        patch.delattr(ImageFile.ImageFile, "load")
        heads = {path.stem: read_header(path) for path in tmp_path.iterdir()}
    assert [heads[name].turned for name in ("before", "behind", "plain")] == [True, True, False]
    assert heads["behind"].size == (4, 6) == read_image(tmp_path / "behind.png").size
    assert heads["huge"].size == (60_000, 60_000)
    with pytest.raises(ImageReadError, match="60000 x 60000 pixels are more than the limit"):
        read_image(tmp_path / "huge.png", 1 << 28)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    """A pipe would give its bytes when somebody writes some."""
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # without which a broken check would wait for ever
    os.write(pipe, bytes(1 << 15))
    for read in (read_image, read_label, read_header, LazyImage):
        with pytest.raises(ImageReadError, match="a pipe, a socket or a device; expected a file"):
            read(path)
    os.close(pipe)


def test_programs_are_not_run(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    for read in (read_image, read_label, read_header):
        with pytest.raises(ImageReadError, match="PostScript is a program, and no picture"):
            read(path)


def test_large_images_are_read_in_strips(tmp_path, monkeypatch):
    """What is transparent, and floating-point values, with the same result."""
    grey = np.arange(120, dtype=np.uint8).reshape(12, 10)
    picture = Image.fromarray(np.stack([grey, grey, grey, grey * 2], axis=-1))
    picture.save(tmp_path / "a.png")
    picture.convert("RGB").quantize(8).save(tmp_path / "b.png", transparency=3)
    shares = np.where(grey == 7, np.nan, grey / 120).astype(np.float32)
    tifffile.imwrite(tmp_path / "c.tif", shares)
    whole = [np.asarray(read_image(path)) for path in sorted(tmp_path.iterdir())]
    assert [each.min() < each.max() == 255 for each in whole] == [True] * 3
    monkeypatch.setattr(values, "_STRIP", 25)
    strips = [np.asarray(read_image(path)) for path in sorted(tmp_path.iterdir())]
    assert all(np.array_equal(a, b) for a, b in zip(whole, strips, strict=True))


def test_numbers_that_are_no_brightness_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((3, 4), np.complex64))
    with pytest.raises(ImageReadError, match="values of type complex64; convert it to 8 or 16"):
        read_image(tmp_path / "a.tif")


def test_a_tiff_that_was_cut_off_before_its_page(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0")
    for read in (read_image, read_header):
        with pytest.raises(ImageReadError, match="a TIFF without a page: it is damaged"):
            read(tmp_path / "a.tif")


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


def test_labels_of_colours(tmp_path):
    colours = [(0, 0, 0), (128, 64, 128), (70, 70, 70)]
    numbers = np.random.default_rng(0).integers(0, 3, (5, 7))
    Image.fromarray(np.array(colours, np.uint8)[numbers]).save(tmp_path / "a.png")
    assert np.array_equal(read_label(tmp_path / "a.png", colours), numbers)
    with pytest.raises(ImageReadError, match=r"not among `label_colours`: \(70, 70, 70\), "):
        read_label(tmp_path / "a.png", colours[:2])
