"""The demo's path with a tiny model; whether the real one convinces, only eyes can tell."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from densesiam import cli
from densesiam.cli import demo
from densesiam.data import SamplePhotos, sample_paths


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The demo's own config, with another network, smaller views and one epoch."""
    content = yaml.safe_load(demo.CONFIG.read_text())
    content["model"] |= {"backbone": "test_resnet", "weights": None, "strides": [8, 16]}
    content["model"] |= {"region_start": 0}
    content["data"]["views"]["init_args"] |= {"size": 32, "resize": 32}
    content["data"] |= {"predict_transform": {"resize": 32}, "samples_per_epoch": 16}
    content["trainer"] |= {"max_epochs": 1}
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(demo, "CONFIG", path)


def test_demo_trains_segments_and_says_where(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["demo", "--output", str(out)]) == 0
    said = capsys.readouterr().out.split("trained for")[1]
    for name in ("contact_sheet.jpg", "overlays", "last.ckpt", "summary.json"):
        path = next(line.split(": ")[1].strip() for line in said.splitlines() if name in line)
        assert path.startswith(str(out))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["training"]["state"] == "finished"
    assert summary["training"]["seconds"] > 0
    assert summary["training"]["epochs"][0]["train/loss"] > 0
    assert len(summary["predictions"]["images"]) == len(SamplePhotos.names) == 9
    assert sum(summary["predictions"]["category_shares"]) == pytest.approx(1)
    for name, path in zip(SamplePhotos.names, sample_paths(), strict=True):
        label = Image.open(out / "predictions" / "labels" / f"{name}.png")
        assert label.size == Image.open(path).size
        assert np.asarray(label).max() < 12


def test_demo_says_what_it_lacks(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "CONFIG", tmp_path / "demo.yaml")
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 1
    assert "which this installation lacks: install again" in capsys.readouterr().err
