"""`densesiam predict` as a whole: its memory is bounded by the decoded image and 500 MB."""

import json
import os
import subprocess
import sys

import pytest

from tests import PATIENCE
from tests.cli.predicting import save_photo, save_segmenter
from tests.data.support import noise

# One process, whose greatest memory is asked for after each image: it never falls.
CODE = """
import json, resource, sys
from densesiam import cli

for i, args in enumerate(json.loads(sys.argv[1])):
    assert cli.main(["predict", *args, "--output", f"out{i}", "--accelerator", "cpu"]) == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""
REST = 500e6


EVERYTHING = ["--confidence", "true", "--format", "coco", "coco-polygons", "labelme"]


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        pytest.param((8000, 6000), ["--resize", "1536"], id="tiles"),
        pytest.param(
            (8000, 6000), ["--resize", "1536", *EVERYTHING], id="all", marks=pytest.mark.faults
        ),
        pytest.param((240, 200_000), [], id="long", marks=pytest.mark.faults),
    ],
)
def test_memory_is_bounded_by_the_decoded_image(tmp_path, size, settings):
    """An image of 48 megapixels.

    A copy of it as float32 would be 576 MB, its logits as float32 as much, its labels as int64
    384 MB.
    """
    checkpoint = str(save_segmenter(tmp_path / "last.ckpt"))
    save_photo(tmp_path / "small.png")
    width, height = size
    blots = noise(max(2, width // 100), max(2, height // 100), 1)
    name = "large.jpg" if max(size) < 1 << 16 else "large.png"  # a JPEG has no longer side
    blots.resize(size).save(tmp_path / name, **({} if "jpg" in name else {"compress_level": 1}))
    runs = [[checkpoint, "small.png"], [checkpoint, name, *settings]]
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(runs)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    small, large = (int(line) for line in done.stdout.splitlines() if line.isdigit())
    assert large - small <= 3 * width * height + REST
    lines = [json.loads(line) for line in (tmp_path / "out1" / "predictions.jsonl").open()]
    assert lines[-1]["tiles"] > 1
