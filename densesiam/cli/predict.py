"""``densesiam predict``: segment photographs with a trained model."""

from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback

from densesiam import __version__
from densesiam.data import Evaluation, SamplePhotos
from densesiam.data.modules.two_views import SegmentationData
from densesiam.methods import METHODS, Method, Segmenter
from densesiam.reports.prediction import PredictionWriter
from densesiam.reports.validation import read_matching
from densesiam.training.checkpoints import CheckpointConfig, read_checkpoint
from densesiam.training.console import interactive, say
from densesiam.training.folders import claim_folder
from densesiam.training.launch import join
from densesiam.training.options import TrainerOptions, build_trainer, probe
from densesiam.training.report import ProgressBar, RunReport
from densesiam.training.run import interruptible

USAGE = "CHECKPOINT IMAGES [--output FOLDER] [--resize PIXELS] [--matching FILE]"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("checkpoint", type=str, help="The trained model, a .ckpt file.")
    parser.add_argument(
        "images", type=str, help='A folder of images, one image, or "samples" for nine photographs.'
    )
    parser.add_argument(
        "--output", type=str | None, help="Folder for the results. Default: outputs/predictions."
    )
    parser.add_argument(
        "--resize",
        type=int | None,
        help="Shorter side that the network sees, in pixels. Default: as the model was trained.",
    )
    parser.add_argument(
        "--matching",
        type=str | None,
        help="The scores.json of a validation of this model: categories are called after the "
        "classes that they were matched to.",
    )
    parser.add_argument(
        "--accelerator",
        type=Literal["auto", "cpu", "gpu"],
        default="auto",
        help="What to compute on; auto takes a GPU where there is one.",
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    join(probe(TrainerOptions(accelerator=config.accelerator, devices=1)), devices=None)
    folder = claim_folder(config.output, "outputs/predictions")
    predict(
        Path(config.checkpoint),
        config.images,
        folder,
        config.resize,
        Path(config.matching) if config.matching else None,
        config.accelerator,
    )


def predict(
    ckpt_path: Path,
    images: str,
    folder: Path,
    resize: int | None = None,
    matching: Path | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
) -> None:
    """Segment photographs with a trained model; see `PredictionWriter` for the files.

    Args:
        ckpt_path: the trained model.
        images: a folder, an image file, or "samples".
        folder: where the files go; it exists.
        resize: shorter side that the network sees, in pixels; by default the ``predict_transform``
            that the model was trained with.
        matching: the ``scores.json`` of a validation of this model, which names the categories.
        accelerator: "auto", "cpu" or "gpu".

    Raises:
        Interrupted: Ctrl-C; the files written so far are kept.
        ValueError: the checkpoint is none, or of another model; or the matching is.
        OSError: there are no images, or one cannot be read; or there is no such matching.
    """
    checkpoint = read_checkpoint(ckpt_path)
    method = METHODS[checkpoint[Method.KEY]]
    model = method.load_from_checkpoint(ckpt_path, map_location="cpu", weights_only=True)
    assert isinstance(model, Segmenter)
    if resize is None:
        trained = yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}"))
        resize = trained.get("data", {}).get("predict_transform", {}).get("resize")
    data = SegmentationData(predict=images, predict_transform=Evaluation(resize=resize))
    categories = [f"category {k}" for k in range(model.num_classes)]
    named = "learned without labels"
    if matching is not None:
        assignment, classes, learned = read_matching(matching, model.num_classes)
        for k, c in enumerate(assignment):
            if c >= 0:
                categories[k] = f"{classes[c]} ({k})"
        named += f"; called after the classes that they were matched to in {matching} ({learned})"
    samples = images == "samples"
    root = None if samples or not Path(images).is_dir() else Path(images)
    protocol = {
        "from": images,
        "checkpoint": str(ckpt_path),
        "categories": f"{model.num_classes}, {named}",
        "resizing": f"{data.predict_transform.description}; logits enlarged bilinearly to the "
        "source's size, the greatest of a pixel decides",
        "software": f"densesiam {__version__}",
    }
    writer = PredictionWriter(
        folder, root, categories, protocol, SamplePhotos.names if samples else None
    )
    callbacks: list[Callback] = [writer]
    if interactive():
        callbacks.append(ProgressBar(RunReport(Path())))
    # One device: several would share out the images, and each would count only its own.
    options = TrainerOptions(accelerator=accelerator, devices=1)
    trainer = build_trainer(options, callbacks, logger=False)
    with interruptible(trainer):
        trainer.predict(model, data, return_predictions=False)
    say(
        f"wrote {folder}: report.html, labels/, overlays/, contact_sheet.jpg, legend.png, "
        "categories.csv, summary.json"
    )
