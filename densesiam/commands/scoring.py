"""Scores of a segmentation model on a labelled set, for the commands that give them."""

from densesiam.data.module import SegmentationData
from densesiam.evaluation import ClusterMetrics
from densesiam.methods import Segmenter


def set_evaluator(model: Segmenter, data: SegmentationData) -> None:
    """Let a model count its clusters against the classes of the validation set."""
    assert data.val is not None
    classes = data.val.classes
    model.evaluator = ClusterMetrics(
        model.num_classes,
        len(classes.names),
        data.val.ignore_index,
        classes.names,
        classes.thing_classes,
    )


def score_table(model: Segmenter) -> str:
    """The scores of the latest validation, as text."""
    assert isinstance(model.evaluator, ClusterMetrics)
    return model.evaluator.table()
