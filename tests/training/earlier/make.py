"""Write what is kept of this version: ``python -m tests.training.earlier.make``."""

import json
import shutil
import tempfile
from pathlib import Path

import torch

from densesiam import cli
from tests.training.earlier.commands import COMMANDS, HERE, checkpoint, prepare
from tests.training.earlier.losses import METHODS, NUDGE, train


def _hollow(value):
    """Tensors of the same shape and type whose one value takes the room of one."""
    if isinstance(value, torch.Tensor):
        return value.new_zeros(()).expand(value.shape) if value.numel() > 1 else value
    if isinstance(value, dict):
        return {key: _hollow(entry) for key, entry in value.items()}
    return [_hollow(entry) for entry in value] if isinstance(value, list) else value


def main():
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            assert cli.main(prepare(command, Path(folder))) == 0
            path = Path(folder, "run", "checkpoints", "last.ckpt")
            if command == "transfer detection":  # torchvision's heads have 14 million parameters
                content = torch.load(path, weights_only=True)
                content["state_dict"] = _hollow(dict(content["state_dict"]))
                content["optimizer_states"] = _hollow(content["optimizer_states"])
                torch.save(content, path)
            shutil.copyfile(path, checkpoint(command))
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in METHODS:
            kept[name] = {
                "losses": train(name, folder)[1],
                "twin": train(name, folder, NUDGE)[1],
            }
    (HERE / "losses.json").write_text(json.dumps(kept, indent=0) + "\n")


if __name__ == "__main__":
    main()
