"""The example of a loop of one's own: without Lightning, and with the method's own losses."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from densesiam.data import Draw, Images, SegmentationViews
from densesiam.methods import DenseSiamSegmentation
from densesiam.models import Encoder
from examples.plain_loop import DenseSiam, main
from tests.data.support import save_images
from tests.tolerance import assert_close, terms_of

TINY = ["--backbone", "test_resnet", "--weights", "none", "--size", "32", "--batch-size", "4"]
SIZES = [(40, 30), (30, 50), (33, 33), (64, 32), (48, 48)]


@pytest.fixture
def photos(tmp_path):
    return save_images(tmp_path / "photos", SIZES)


def test_trains_and_segments_a_folder(photos, tmp_path, capsys):
    main([str(photos), "--output", str(tmp_path / "out"), "--steps", "5", "--classes", "3", *TINY])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {i}" for i in range(5)]
    assert all(name in lines[0] for name in ("sim", "pseudo_label", "region"))
    written = sorted((tmp_path / "out").glob("*.png"))
    for path, size in zip(written, SIZES, strict=True):
        with Image.open(path) as labels:
            assert labels.size == size
            assert set(np.unique(labels)) <= {0, 1, 2}
    weights = torch.load(tmp_path / "out/model.pt", weights_only=True)
    DenseSiam(Encoder("test_resnet"), 3).load_state_dict(weights)


def test_runs_without_lightning(photos, tmp_path):
    program = (
        "import runpy, sys\n"
        "sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "sys.argv = ['plain_loop', *sys.argv[1:]]\n"
        "runpy.run_path('examples/plain_loop.py', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, photos, "--output", tmp_path / "out", *TINY]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*map(str, command), "--steps", "1"], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 0: sim ")


def test_the_losses_are_the_methods(photos):
    torch.manual_seed(0)
    method = DenseSiamSegmentation(
        num_classes=5, aux_classes=None, region_start=0, backbone="test_resnet"
    )
    model = DenseSiam(Encoder("test_resnet"), 5)
    model.load_state_dict(method.state_dict())
    images = Images(photos, SegmentationViews(32, resize=40, crop=None))
    batch = default_collate([images[Draw(i)] for i in range(len(images))])
    batch["crop1"][1] -= 5  # reaches beyond view 2: this pair counts nowhere
    losses = model(batch)
    features1, features2, weight = method.aligned_features(batch)
    assert weight.tolist() == [True, False, True, True, True]
    expected, _, _ = method.losses(features1, features2, weight)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        # Cross-entropies of a few nats; the contrast divides cosines by 0.1.
        assert_close(loss, expected[name], terms_of(model), rms=10)
