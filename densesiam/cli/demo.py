"""``densesiam demo``: train on nine photographs, segment them, look at the result.

It calls the same commands as a user would, ``densesiam fit --config configs/demo.yaml`` and
``densesiam predict``; there is no training loop of its own, and every setting is in that file.
"""

import json
from pathlib import Path
from types import ModuleType

from jsonargparse import ArgumentParser, Namespace

from densesiam._writing import write_json
from densesiam.cli import fit, predict
from densesiam.cli.shipped import CONFIGS
from densesiam.training.folders import claim_folder

USAGE = "[--output FOLDER]"
CONFIG = CONFIGS / "demo.yaml"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "--output", type=str | None, help="Folder for the results. Default: outputs/demo."
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    demo(config.output)


def demo(output: str | None = None) -> Path:
    """Train and segment.

    Args:
        output: folder for the results; by default ``outputs/demo``, numbered where it is taken.

    Returns:
        The folder: ``contact_sheet.jpg``, ``overlays/``, ``labels/``, ``legend.png``, the run in
        ``training/`` with its checkpoint, and ``summary.json``: losses of the epochs, shares of the
        categories, seconds.

    Raises:
        FileNotFoundError: the config file is not there.
        FileExistsError: the folder holds something.
    """
    if not CONFIG.is_file():
        raise FileNotFoundError(
            f"the demo needs {CONFIG}, which this installation lacks: install again"
        )
    folder = claim_folder(output, "outputs/demo")
    training, predictions = folder / "training", folder / "predictions"
    _command(fit, "--config", str(CONFIG), "--output", str(training))
    checkpoint = training / "checkpoints" / "last.ckpt"
    _command(predict, str(checkpoint), "samples", "--output", str(predictions))

    trained = json.loads((training / "summary.json").read_text())
    predicted = json.loads((predictions / "summary.json").read_text())
    write_json(folder / "summary.json", {"training": trained, "predictions": predicted})
    print(
        f"\ntrained for {trained['seconds']:.0f} s; "
        f"{predicted['categories_used']} categories used\n"
        f"photographs beside their segmentation: {predictions / 'contact_sheet.jpg'}\n"
        f"each one alone:                        {predictions / 'overlays'}\n"
        f"the trained model:                     {checkpoint}\n"
        f"losses, category shares, seconds:      {folder / 'summary.json'}"
    )
    return folder


def _command(command: ModuleType, *args: str) -> None:
    """Run another subcommand as if its arguments had been typed."""
    parser = ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    command.run(parser, parser.parse_args(args))
