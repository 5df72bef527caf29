"""The example of the guards against collapse: a few steps of it, with a tiny network."""

import json

import pytest
from PIL import Image

from examples import collapse

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own
]


def test_all_four_cases_are_trained_and_drawn(tmp_path, capsys):
    tiny = {"backbone": "test_resnet", "strides": (4, 8), "channels": 16}
    collapse.run(tmp_path, steps=2, encoder=tiny)
    runs = json.loads((tmp_path / "collapse.json").read_text())
    assert list(runs) == ["both", "stop-gradient only", "normalisation only", "neither"]
    first = {name: run["history"][0] for name, run in runs.items()}
    assert [measured["step"] for measured in runs["both"]["history"]] == [0, 1]
    # The same weights and images: what differs at first is the guards' doing alone.
    for name in ("encoder/std", "encoder/effective_rank"):
        assert len({measured[name] for measured in first.values()}) == 1
    assert first["both"]["z/std"] == first["normalisation only"]["z/std"]
    assert (
        first["both"]["z/std"] > first["neither"]["z/std"] == first["stop-gradient only"]["z/std"]
    )
    gradient = "gradient_norm/projector"
    assert first["both"][gradient] != first["normalisation only"][gradient]
    with Image.open(tmp_path / "collapse.png") as picture:
        assert min(picture.size) > 300
    assert capsys.readouterr().out.count("findings:") == 4
