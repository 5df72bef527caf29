"""Several processes score as one does."""

import json

import pytest

from densesiam import cli
from tests.training.children import run_together
from tests.training.earlier.commands import checkpoint, prepare
from tests.transfer.support import results, save_labelled


def scores(folder):
    """What a command wrote; of `validate`, all but the time and place that are in it."""
    if (folder / "results.json").is_file():
        return results(folder)
    return json.loads((folder / "validation" / "scores.json").read_text())


# Three images each: of two processes, the second has one fewer, and gets the first once more.
@pytest.mark.parametrize("name", ["validate", "transfer segmentation", "probe classification"])
def test_uneven_evaluation_counts_each_image_once(name, tmp_path):
    trained = "fit" if name == "validate" else name
    args = prepare(trained, tmp_path)
    if name == "probe classification":
        (tmp_path / "val" / "red" / "1.png").unlink()
    else:
        args += [f"--data.val={json.dumps(save_labelled(tmp_path / 'three', 3))}"]
    if name == "validate":
        args[0] = name
    else:
        args += ["--evaluate", "true"]
    args += ["--ckpt_path", str(checkpoint(trained)), "--trainer.devices"]
    assert cli.main([*args, "1", "--output", str(tmp_path / "one")]) == 0
    assert run_together([*args, "2", "--output", str(tmp_path / "two")], 2) == [0, 0]
    assert scores(tmp_path / "two") == scores(tmp_path / "one")
