"""``densesiam probe``: what a frozen backbone's features hold, read off by simple classifiers."""

from typing import Literal

import lightning as L
import torch
from jsonargparse import ArgumentParser, Namespace
from torch.utils.data import DataLoader

from densesiam._writing import write_json, write_text
from densesiam.data.modules.supervised import ClassifiedData, LabelledData
from densesiam.data.sets.labelled import LabelledFiles
from densesiam.evaluation.scores import SegmentationScores
from densesiam.models import Encoder
from densesiam.training.console import say
from densesiam.training.folders import claim_folder
from densesiam.training.launch import join
from densesiam.training.options import TrainerOptions, probe
from densesiam.training.task import Task, add_tasks
from densesiam.transfer.base import score_table
from densesiam.transfer.probes import (
    LinearClassificationProbe,
    LinearSegmentationProbe,
    NearestNeighbourProbe,
)

USAGE = "{segmentation,knn,classification} [--config FILE] [--model.weights FILE] [other settings]"

TASKS = {
    "segmentation": Task(
        "probe segmentation",
        "Train a linear classifier of pixels on frozen dense features.",
        LinearSegmentationProbe,
        LabelledData,
        of_data=("classes", "ignore_index"),
    ),
    "classification": Task(
        "probe classification",
        "Train a linear classifier of images on frozen pooled features.",
        LinearClassificationProbe,
        ClassifiedData,
    ),
}
_KNN = "Segment by the nearest neighbours among labelled dense features; nothing is trained."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's tasks to its parser."""
    parsers = {name: (task.summary, task.parser()) for name, task in TASKS.items()}
    add_tasks(parser, {**parsers, "knn": (_KNN, _knn_parser())})


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the chosen task."""
    if config.task == "knn":
        _run_knn(config.knn)
    else:
        TASKS[config.task].run(config[config.task])


def _knn_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description=_KNN,
        usage="densesiam probe knn --config FILE [--model.weights FILE] [other settings]",
    )
    parser.add_argument("--config", action="config", help="YAML file of settings.")
    parser.add_argument(
        "--output", type=str | None, help="Folder for the results. Default: outputs/probe-knn."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the features to remember.")
    parser.add_argument(
        "--accelerator",
        type=Literal["auto", "cpu", "gpu"],
        default="auto",
        help="What to compute on; auto takes a GPU where there is one.",
    )
    parser.add_class_arguments(Encoder, "model", skip={"backbone_lr_factor", "normalize_stages"})
    parser.set_defaults({"model.strides": [16], "model.fpn": False})
    parser.add_argument(
        "--data.train", type=LabelledFiles, required=True, help="Labelled images to remember."
    )
    parser.add_argument(
        "--data.val", type=LabelledFiles, required=True, help="Labelled images to score."
    )
    parser.add_argument("--data.num_workers", type=int, default=0, help="Processes that load data.")
    parser.add_class_arguments(NearestNeighbourProbe, "knn")
    parser.link_arguments("model", "knn.encoder", apply_on="instantiate")
    parser.link_arguments("seed", "knn.seed")
    for name, of_data in (("num_classes", _num_classes), ("ignore_index", _ignore_index)):
        parser.link_arguments("data.train", f"knn.{name}", of_data, apply_on="instantiate")
    return parser


def _num_classes(data: LabelledFiles) -> int:
    return len(data.classes.names)


def _ignore_index(data: LabelledFiles) -> int:
    return data.ignore_index


def _run_knn(config: Namespace) -> None:
    """Remember the training images, segment the others; write ``results.json``."""
    parser = _knn_parser()
    join(probe(TrainerOptions(accelerator=config.accelerator, devices=1)), devices=None)
    L.seed_everything(config.seed, verbose=False)  # a backbone without weights is random
    text = parser.dump(config.clone(), skip_unset=False)
    built = parser.instantiate(config)
    train, val = built.data.train, built.data.val
    if list(train.classes.names) != list(val.classes.names):
        raise ValueError("data.train and data.val differ in their classes")
    val.check_sizes()
    folder = claim_folder(config.output, "outputs/probe-knn")
    on_gpu = config.accelerator == "gpu" or (
        config.accelerator == "auto" and torch.cuda.is_available()
    )
    device = torch.device("cuda" if on_gpu else "cpu")
    if (loaded := built.knn.encoder.weights_report) is not None:
        say(f"weights: {loaded}")
    knn = built.knn.to(device)
    scores = SegmentationScores(knn.num_classes, knn.ignore_index).to(device)
    # One image at a time, since their sizes may differ.
    loaders = (DataLoader(data, 1, num_workers=built.data.num_workers) for data in (train, val))
    for batch in next(loaders):
        knn.remember(batch["image"].to(device), batch["label"].to(device))
    for batch in next(loaders):
        scores.update(knn(batch["image"].to(device)), batch["label"].to(device))
    found = scores.by_name(val.classes.names)
    say(score_table(found))
    write_text(folder / "config.yaml", text)
    write_json(folder / "results.json", {"scores": found})
    say(f"wrote {folder / 'results.json'}")
