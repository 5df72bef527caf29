"""The files of a prediction."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from densesiam.reports.prediction import PredictionWriter
from densesiam.reports.visualize import palette


@pytest.mark.parametrize(("categories", "mode"), [(256, "L"), (257, "I;16")])
def test_every_category_is_written_and_painted(tmp_path, categories, mode):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (categories, 2), (0, 0, 0)).save(photo)
    labels = torch.arange(categories).expand(2, categories)
    names = [f"category {k}" for k in range(categories)]
    writer = PredictionWriter(tmp_path / "out", None, names, {})
    loader = SimpleNamespace(dataset=SimpleNamespace(paths=[photo]))
    trainer = SimpleNamespace(predict_dataloaders=loader)
    writer.on_predict_start(trainer, None)
    batch = {"index": torch.tensor([0]), "path": [str(photo)]}
    writer.write_on_batch_end(trainer, None, [labels], None, batch, 0, 0)

    with Image.open(tmp_path / "out/labels/photo.png") as written:
        assert written.mode == mode
        assert np.array_equal(np.asarray(written), labels.numpy())
    painted = np.asarray(writer._rows[0][1].convert("RGB"))  # no larger than it is shown
    assert painted.shape == (2, categories, 3)
    assert np.array_equal(painted[0], palette(categories))
