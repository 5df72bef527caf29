"""Scores of a segmentation model on a labelled set, for the commands that give them."""

from collections.abc import Sequence
from typing import Any

from densesiam.data import LabelledFiles
from densesiam.data.modules.two_views import SegmentationData
from densesiam.evaluation import ClusterMetrics
from densesiam.evaluation.matching import Matching


def set_evaluator(
    model: Any,
    data: SegmentationData,
    matching: Matching = "hungarian",
    assignment: Sequence[int] | None = None,
    legacy: bool = False,
) -> None:
    """Let a model count its clusters against the classes of the validation set.

    Args:
        model: a `Segmenter`, or what has its ``num_classes`` and ``evaluator``.
        data: with a validation set.
        matching: of clusters and classes; see `ClusterMetrics`.
        assignment: a matching learned elsewhere.
        legacy: give the release's scores of things and stuff too.
    """
    assert data.val is not None
    classes = data.val.classes
    model.evaluator = ClusterMetrics(
        model.num_classes,
        len(classes.names),
        data.val.ignore_index,
        classes.names,
        classes.thing_classes,
        matching,
        assignment,
        legacy,
    )


def describe_evaluation(data: LabelledFiles) -> dict[str, str]:
    """On what a model is scored, and at which sizes image, logits and label meet."""
    labels = "the source's size" if data.transform.full_size_labels else "the image's size"
    return {
        "data": data.description,
        "images": data.transform.description,
        "labels": f"at {labels}, nearest pixel",
        "logits": "enlarged bilinearly to the label's size; the greatest of a pixel decides",
    }


def score_table(model: Any) -> str:
    """The scores of the latest validation, as text."""
    assert isinstance(model.evaluator, ClusterMetrics)
    return model.evaluator.table()
