import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from densesiam.data import (
    Draw,
    Evaluation,
    ImageFiles,
    ImageReadError,
    Images,
    OfficialSegmentationViews,
    PredictionImages,
    SamplePhotos,
    SegmentationViews,
    read_image,
    sample_paths,
)
from densesiam.data.image import lazy
from densesiam.data.image.lazy import LazyImage, Part
from tests.data.support import noise, save_images

VIEWS = SegmentationViews(16, 32, 32)


@pytest.fixture
def folder(tmp_path):
    return save_images(tmp_path / "set", [(40, 30), (30, 50), (33, 33), (64, 32)])


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_items(folder):
    item = Images(folder, VIEWS)[2]
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in item.items()}
    assert shapes == {
        "view1": ((3, 16, 16), torch.float32),
        "view2": ((3, 16, 16), torch.float32),
        "crop1": ((4,), torch.float32),
        "crop2": ((4,), torch.float32),
        "flip1": ((), torch.bool),
        "flip2": ((), torch.bool),
        "index": ((), torch.int64),
        "skipped": ((), torch.int64),
    }
    assert item["index"] == 2


def test_iteration_ends(folder):
    data = Images(folder, VIEWS)
    for index in (4, -1):
        with pytest.raises(IndexError, match=f"no image {index} among 4"):
            data[index]
    assert [item["index"].item() for item in data] == [0, 1, 2, 3]


def test_draws_follow_from_seed_epoch_repetition_and_index(folder):
    data = Images(folder, VIEWS, seed=1)
    state = torch.get_rng_state()
    first = data[Draw(0, epoch=3, repetition=1)]
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    torch.manual_seed(123)
    assert same(first, Images(folder, VIEWS, seed=1)[Draw(0, 3, 1)])
    others = [
        data[Draw(0, epoch=4, repetition=1)],
        data[Draw(0, epoch=3, repetition=2)],
        data[Draw(0, epoch=1, repetition=3)],
        data[Draw(1, epoch=3, repetition=1)],
        Images(folder, VIEWS, seed=2)[Draw(0, 3, 1)],
    ]
    crops = [tuple(item["crop1"].tolist()) for item in [first, *others]]
    assert len(set(crops)) == len(crops)
    with pytest.raises(ValueError, match="must not be negative, got seed=-1"):
        Images(folder, VIEWS, seed=-1)[0]


def crops(loader):
    """Each image's crop in one pass over the loader, by its index."""
    return {
        index: tuple(crop)
        for batch in loader
        for index, crop in zip(batch["index"].tolist(), batch["crop1"].tolist(), strict=True)
    }


@pytest.mark.parametrize(
    "workers", [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent": True}]
)
def test_a_plain_loader_draws_afresh_in_each_epoch_and_repeats_with_the_global_seed(
    folder, workers
):
    def epochs(seed):
        torch.manual_seed(0)
        loader = DataLoader(
            Images(folder, VIEWS, seed),
            batch_size=2,
            shuffle=True,
            num_workers=workers["num_workers"],
            persistent_workers=workers.get("persistent", False),
        )
        return [crops(loader) for _ in range(3)]

    first = epochs(seed=1)
    assert all(len(epoch) == 4 for epoch in first)
    drawn = [crop for epoch in first for crop in epoch.values()]
    assert len(set(drawn)) == len(drawn)
    assert epochs(seed=1) == first
    assert epochs(seed=2) != first  # the data set's own seed counts too


def test_an_index_that_is_no_integer_is_refused(folder):
    data = Images(folder, VIEWS)
    assert data[np.int64(2)]["index"] == 2
    with pytest.raises(TypeError, match="'str' object cannot be interpreted as an integer"):
        data["2"]


def test_official_draws_are_never_renewed(folder):
    data = Images(folder, OfficialSegmentationViews(16, 32, 4))
    assert same(data[Draw(1)], data[Draw(1, epoch=5, repetition=2)])
    assert not torch.equal(data[1]["view1"], data[2]["view1"])


def test_bad_files_are_named_once_and_replaced(folder):
    (folder / "1.png").write_text("damaged")
    (folder / "3.png").write_text("damaged")
    data = Images(folder, VIEWS)
    with pytest.warns(
        UserWarning, match=r"cannot read image .*1\.png: .*next image takes its place"
    ):
        item = data[Draw(1, epoch=2)]
    assert (item["index"], item["skipped"]) == (2, 1)
    with pytest.warns(UserWarning, match=r"3\.png"):
        assert data[3]["index"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(data[Draw(1, epoch=2)], item)
        assert data[Draw(1, epoch=3)]["index"] == 2
    # A data set that has met the file before draws the same as one that has not.
    with pytest.warns(UserWarning, match="1"):
        assert same(Images(folder, VIEWS)[Draw(1, epoch=2)], item)


def test_a_file_that_failed_is_tried_again_in_the_next_epoch(folder):
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_text("damaged")
    data = Images(folder, VIEWS)
    with pytest.warns(UserWarning, match=r"1\.png"):
        assert data[Draw(1, epoch=2)]["index"] == 2
    (folder / "1.png").write_bytes(whole)
    assert data[Draw(1, epoch=2)]["index"] == 2  # the same until the end of the epoch
    assert data[Draw(1, epoch=3)]["index"] == 1


def test_bad_files_may_stop_the_run(folder):
    (folder / "1.png").write_text("damaged")
    data = Images(folder, VIEWS, errors="raise")
    with pytest.raises(ImageReadError, match=r"cannot read image .*1\.png"):
        data[1]
    assert data[0]["index"] == 0
    with pytest.raises(ValueError, match='errors must be "skip" or "raise"'):
        Images(folder, VIEWS, errors="ignore")


def test_nothing_readable(folder):
    for path in folder.iterdir():
        path.write_text("damaged")
    with (
        pytest.warns(UserWarning, match="damaged|cannot read"),
        pytest.raises(ImageReadError, match="none of the 4 images can be read"),
    ):
        Images(folder, VIEWS)[0]


def test_images_too_small_for_the_views_are_named(folder):
    with pytest.raises(ValueError, match=r"0\.png: a centre crop of 33 pixels does not fit"):
        Images(folder, SegmentationViews(16, None, 33))[0]


def test_sample_photos():
    data = SamplePhotos(VIEWS)
    assert len(data) == len(data.names) == len(set(data.paths)) == 9
    assert data[8]["view1"].shape == (3, 16, 16)


def test_missing_sample_photos(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install scikit-image scikit-learn"):
        sample_paths()


def test_prediction_images(folder):
    paths = sorted(folder.iterdir())
    data = PredictionImages(paths)
    assert len(data) == 4
    item = data[1]
    assert item["image"].shape == (3, 50, 30)
    assert item["source_size"].tolist() == [50, 30]
    assert item["path"] == str(paths[1])
    assert item["index"] == 1
    with pytest.raises(ValueError, match=r"0\.png: a centre crop of 31"):
        PredictionImages(paths, Evaluation(crop=31))[0]
    paths[2].write_text("damaged")
    with pytest.raises(ImageReadError, match=r"2\.png"):
        data[2]


def test_a_list_of_files(tmp_path):
    noise(32, 32).save(tmp_path / "a.png")
    assert len(ImageFiles([tmp_path / "a.png"], VIEWS)) == 1


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_set_that_fits_is_decoded_once(tmp_path, monkeypatch, kind):
    paths = [tmp_path / f"{i}.{kind}" for i in range(3)]
    for i, path in enumerate(paths):
        noise(64, 48, seed=i).save(path)
    decoded = []

    def counted(path, *, upright):
        decoded.append(path)
        return read_image(path, upright=upright)

    monkeypatch.setattr(lazy, "read_image", counted)
    draws = [Draw(i, epoch, 0) for epoch in range(3) for i in range(3)]
    size = 64 * 48 * 4
    # How many decodes; where two fit, the third one drops them.
    for keep, expected in ((0, 9), (3 * size, 3), (2 * size, 9)):
        decoded.clear()
        data = ImageFiles(paths, VIEWS, keep=keep)
        items = [data[draw] for draw in draws]
        assert len(decoded) == expected
        afresh = ImageFiles(paths, VIEWS)
        assert all(same(item, afresh[draw]) for item, draw in zip(items, draws, strict=True))


def test_reductions_are_kept_and_counted(tmp_path, monkeypatch):
    noise(640, 480).save(tmp_path / "a.jpg")
    photo = LazyImage(tmp_path / "a.jpg")
    decoded, reduced = [], LazyImage._reduced

    def counted(photo, path, reduction):
        decoded.append(reduction)
        return reduced(photo, path, reduction)

    monkeypatch.setattr(LazyImage, "_reduced", counted)
    assert photo.grown() == 0
    parts = [Part((0, 0, 640, 480), size, False) for size in ((32, 40), (64, 80), (480, 640))]
    sizes = (80 * 60 * 4, 160 * 120 * 4, 640 * 480 * 4)
    for part, size in zip(parts, sizes, strict=True):
        photo.read([part])
        assert photo.grown() == size
        photo.read([part])
        assert photo.grown() == 0
    assert decoded == [8, 4]


def test_what_wants_images_gets_its_own(tmp_path):
    """Such views may paint on them."""

    class Painting(SegmentationViews):
        lazy = False

        def __call__(self, image, generator):
            seen.append(image.getpixel((0, 0)))
            image.paste((1, 2, 3), (0, 0, *image.size))
            return super().__call__(image, generator)

    seen = []
    noise(64, 48).save(tmp_path / "a.png")
    data = ImageFiles([tmp_path / "a.png"], Painting(16, 32, 32), keep=1 << 20)
    for epoch in range(2):
        data[Draw(0, epoch, 0)]
    assert seen[0] == seen[1] != (1, 2, 3)
