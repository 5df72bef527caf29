"""The example of the fused losses in lightly's SimSiam."""

import pytest
import torch

from densesiam.models import Encoder
from densesiam.nn import PixelSimilarity
from tests.data.support import save_images
from tests.tolerance import assert_close

pytest.importorskip("lightly")

from lightly.loss import NegativeCosineSimilarity

from examples.lightly_simsiam import main


def test_trains_on_a_folder(tmp_path, capsys):
    photos = save_images(tmp_path / "photos", [(40, 30), (30, 50), (33, 33), (64, 32)])
    options = ["--steps", "2", "--batch-size", "4", "--size", "64", "--backbone", "test_resnet"]
    main([str(photos), "--output", str(tmp_path / "out"), *options])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[:3] for line in lines] == [["step", f"{i}:", "sim"] for i in range(2)]
    assert all("dense" in line for line in lines)
    weights = torch.load(tmp_path / "out/encoder.pt", weights_only=True)
    Encoder("test_resnet", strides=(32,), fpn=False).load_state_dict(weights)


def test_the_fused_loss_is_lightlys():
    p, z = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fused, plain = PixelSimilarity()(p, z), NegativeCosineSimilarity()(p, z.detach())
    assert_close(fused, plain, terms=3 * 32 + 6)
    gradients = [torch.autograd.grad(loss, p)[0] for loss in (fused, plain)]
    assert_close(*gradients, terms=3 * 32)
