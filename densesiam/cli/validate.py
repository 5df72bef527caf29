"""``densesiam validate``: score a model on labelled images, and report on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback

from densesiam import __version__, ops
from densesiam._writing import write_json
from densesiam.cli.segmenters import (
    Head,
    LearnedFromLabels,
    is_learned_from_labels,
    load_segmenter,
    read_segmenter,
    segment_with_aux,
)
from densesiam.data import LabelledFiles, to_image
from densesiam.data.modules.two_views import SegmentationData
from densesiam.evaluation import ClusterMetrics
from densesiam.evaluation.matching import Matching
from densesiam.evaluation.ranking import ImageCounts, ImageScore, rank_images
from densesiam.methods import DenseSiamSegmentation, Segmenter
from densesiam.reports.naming import read_categories
from densesiam.reports.validation import Example, ValidationReport, read_matching
from densesiam.training.checkpoints import CheckpointConfig, open_checkpoint, read_checkpoint
from densesiam.training.console import first_process, interactive, say
from densesiam.training.folders import claim_folder
from densesiam.training.launch import join
from densesiam.training.options import TrainerOptions, build_trainer, probe
from densesiam.training.report import ProgressBar, RunReport, note_killed
from densesiam.training.run import add_config_arguments, build, check_fits, interruptible
from densesiam.training.scoring import describe_evaluation, score_table, set_evaluator

USAGE = "--config FILE [--ckpt_path CHECKPOINT] [--matching KIND|FILE] [other settings]"

_EXAMPLES = 6  # images on the report, of the best and of the worst
_RULES = {
    "hungarian": "Hungarian on pixel counts, one cluster a class",
    "majority": "majority of pixels, many clusters a class",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config_arguments(
        parser,
        DenseSiamSegmentation,
        SegmentationData,
        'Checkpoint to score: "best" or "last" in the --output folder, or a path.',
    )
    add_scoring_arguments(parser)


def add_scoring_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say how to score, for every command that does it."""
    parser.add_argument(
        "--matching",
        type=str,
        default="hungarian",
        help="How clusters become classes: hungarian (one to one), majority (many to one), or the "
        "scores.json of an earlier validation, whose matching is applied as it is: learn it on one "
        "split, score another, and no label has been seen before it counts; or the names.yaml of a "
        "prediction, filled in with names of classes.",
    )
    parser.add_argument(
        "--head",
        type=Head,
        default="main",
        help="aux scores the over-clustering head, with model.aux_classes clusters.",
    )
    parser.add_argument(
        "--legacy",
        action="store_true",
        help="Give things and stuff as the authors' release computes them too; they are wrong.",
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    join(probe(TrainerOptions(**vars(config.trainer))))
    ckpt_path, labelled = None, False
    if config.ckpt_path is not None:
        if config.output is not None:
            note_killed(Path(config.output))
        # A wrong file should be named before anything is built.
        ckpt_path, checkpoint = open_checkpoint(config.ckpt_path, config.output, read_segmenter)
        _take_labels(parser, config, checkpoint)
        labelled = is_learned_from_labels(checkpoint)
    built = build(parser, config, ckpt_path)
    if built.data.val is None:
        raise ValueError("no labelled images: give data.val (see the comments in configs/)")
    folder = claim_folder(None, str(Path(config.output or "outputs") / "validation"))
    model = built.model
    if labelled and ckpt_path is not None:
        trained = load_segmenter(ckpt_path, config.head)
        learned, classes = trained.classes or [], built.data.val.classes.names
        if learned != list(classes):
            raise ValueError(
                f"{ckpt_path} has learned other classes ({', '.join(learned)}) than the labels "
                f"have ({', '.join(classes)})"
            )
        model = LearnedFromLabels(trained)
    validate(
        model,
        built.data,
        built.options,
        folder,
        ckpt_path,
        config.matching,
        config.head,
        config.legacy,
    )


def _take_labels(parser: ArgumentParser, config: Namespace, checkpoint: dict[str, Any]) -> None:
    """Score on the checkpoint's own labelled images where no others are given."""
    before = yaml.safe_load(checkpoint.get(CheckpointConfig.KEY, "{}")).get("data", {}).get("val")
    if config.data.val is None and before is not None:
        given = parser.parse_object({"data": {"val": before}})
        config.data.val = given.data.val


def validate(
    model: Segmenter | LearnedFromLabels,
    data: SegmentationData,
    options: TrainerOptions,
    folder: Path,
    ckpt_path: Path | None = None,
    matching: str = "hungarian",
    head: Head = "main",
    legacy: bool = False,
) -> None:
    """Score a model on the labelled validation set, print a line for each class, and report.

    Args:
        model: the model; the categories of one that labels have taught are the classes.
        data: with a validation set.
        options: how to run it.
        folder: where ``scores.json`` and what `ValidationReport.write` names go; it exists.
        ckpt_path: the trained tensors; None scores the model as it starts.
        matching: "hungarian", "majority", or the path of a ``scores.json`` or a ``names.yaml``.
        head: which head's categories to score.
        legacy: give the release's scores of things and stuff too.

    Raises:
        ValueError: the checkpoint or the matching does not fit, or there is no such head or score.
        OSError: an image cannot be read, or there is no such matching.
    """
    assert data.val is not None
    if isinstance(model, Segmenter):
        if ckpt_path is not None:
            checkpoint = read_checkpoint(ckpt_path)
            check_fits(model, ckpt_path, checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
        if head == "aux":
            segment_with_aux(model)
    kind: Matching = "majority" if matching == "majority" else "hungarian"
    assignment, rule = None, f"{_RULES[kind]}, learned from the very labels it is scored on"
    names = data.val.classes.names
    if isinstance(model, LearnedFromLabels):
        assignment, rule = list(range(len(names))), "none: the model has learned these classes"
    elif matching.endswith((".yaml", ".yml")):
        assignment = _by_name(Path(matching), model.num_classes, names)
        rule = f"by the names in {matching}"
    elif matching not in get_args(Matching):
        assignment, _, learned = read_matching(Path(matching), model.num_classes, names)
        rule = f"taken from {matching} ({learned})"
    set_evaluator(model, data, kind, assignment, legacy)
    images = ImageCounts()
    callbacks: list[Callback] = [images]
    if interactive():
        callbacks.append(ProgressBar(RunReport(Path())))
    trainer = build_trainer(options, callbacks, logger=False)
    with interruptible(trainer):
        trainer.validate(model, data, verbose=False)
    say(score_table(model))
    if not first_process():
        return
    protocol = {
        **describe_evaluation(data.val),
        "matching": rule,
        "clusters": f"{model.num_classes}, of the {'over-clustering' if head == 'aux' else 'main'} "
        f"head; {len(data.val.classes.names)} classes",
        "mean IoU": "over the classes that labels or prediction have; void pixels count nowhere",
        "precision": options.precision,
        "checkpoint": "none: the model as training starts" if ckpt_path is None else str(ckpt_path),
        "software": f"densesiam {__version__}",
    }
    report = _report(model, data.val, images, protocol)
    report.write(folder)
    write_json(folder / "scores.json", report.content())
    say(f"wrote {folder}: report.html, scores.txt, scores.csv, scores.json, confusion.png, images/")


def _by_name(path: Path, count: int, classes: Sequence[str]) -> list[int]:
    """The class that has the name of each category, -1 for none."""
    found = read_categories(path, count)
    names = dict(enumerate(found.names))
    if not set(found.names) & set(classes):
        raise ValueError(
            f"{path} gives no category the name of a class: the classes are {', '.join(classes)}"
        )
    return [classes.index(names[n]) if names.get(n) in classes else -1 for n in found.of.tolist()]


def _report(
    model: Segmenter | LearnedFromLabels,
    data: LabelledFiles,
    images: ImageCounts,
    protocol: dict[str, str],
) -> ValidationReport:
    assert isinstance(model.evaluator, ClusterMetrics)
    scores = model.evaluator.compute()
    assignment = scores["assignment"].reshape(-1).numpy()
    ranked = rank_images(images.counts, assignment)
    many = min(_EXAMPLES, len(ranked) // 2) or len(ranked)  # of one image alone: the best
    best = ranked[:many]
    worst = ranked[many:][::-1][:many]
    return ValidationReport(
        scores,
        model.evaluator.table(),
        data.classes,
        data.ignore_index,
        protocol,
        [_example(model, data, image, assignment) for image in best],
        [_example(model, data, image, assignment) for image in worst],
    )


def _example(
    model: Segmenter | LearnedFromLabels,
    data: LabelledFiles,
    image: ImageScore,
    assignment: np.ndarray,
) -> Example:
    """Segment an image once more, to be shown."""
    item = data[image.index]
    logits = model.segment(item["image"][None].to(model.device))
    height, width = item["label"].shape
    clusters = ops.label_map(logits, (height, width))[0].cpu().numpy()
    classes = assignment[clusters]
    return Example(
        data.paths[image.index][0].name,
        to_image(item["image"]),
        np.where(classes < 0, len(data.classes.names), classes),
        item["label"].numpy(),
        image.miou,
        image.accuracy,
    )
