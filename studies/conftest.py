"""CamVid's layout in small, for the studies' tests."""

import numpy as np
import pytest
from PIL import Image

from tests.conftest import one_thread  # noqa: F401  as in all tests


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """Stripes of the eleven classes and of void in grey, 16 images to train on and 2 to score."""
    root = tmp_path_factory.mktemp("camvid")
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2), ("test", 2)):
        for i in range(count):
            label = np.repeat(generator.permutation(12), 16)[:, None].repeat(256, axis=1)
            pixels = (label * 20)[..., None] + generator.integers(0, 10, (*label.shape, 3))
            for kind, array, suffix in (("images", pixels, "jpg"), ("labels", label, "png")):
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(folder / f"{i}.{suffix}")
    return root
