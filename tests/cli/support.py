"""A tiny pre-training, and where the documentation is."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from densesiam.cli.registry import build_parsers

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = {
    "backbone": "test_resnet",
    "strides": [8],
    "grid": 3,
    "num_regions": 5,
    "hidden_channels": 12,
    "predictor_channels": 6,
    "region_channels": 8,
    "region_start": 1,
    "base_lr": 1.0,
    "schedule": "fixed",
}


def save_photos(folder):
    """Eight noisy photographs."""
    folder.mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 88)).save(folder / f"{i}.png")
    return folder


def save_config(tmp_path, photos):
    """A config of a tiny pre-training in `tmp_path`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "output": str(tmp_path / "run"),
                "model": MODEL,
                "data": {
                    "train": str(photos),
                    "views": {
                        "class_path": "TwoCrops",
                        # Two crops of 60 % of the area always overlap.
                        "init_args": {"size": 32, "scale": [0.6, 1.0]},
                    },
                    "batch_size": 4,
                },
                "trainer": {"max_epochs": 2, "accelerator": "cpu"},
            }
        )
    )
    return path


def parse(command, *paths, settings=()):
    """What a command makes of config files and further arguments."""
    parser, _ = build_parsers()
    return parser.parse_args([command, *(f"--config={path}" for path in paths), *settings])[command]
