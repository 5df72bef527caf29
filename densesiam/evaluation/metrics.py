"""Scores of a clustering against a labelled set: match clusters to classes, then count."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from densesiam import ops
from densesiam.evaluation.matching import (
    Matching,
    check_matching,
    clusters_in_release_order,
    match_clusters,
    reorder_clusters,
)


@dataclass(frozen=True)
class Scores:
    """Scores of one class-by-predicted-class table, all in [0, 1].

    Attributes:
        iou: intersection over union of each class; nan where a class is neither in the truth
            nor predicted, 0 where it is only predicted.
        class_accuracy: share of each class's pixels found (recall); nan without any.
        miou: mean of `iou` over the classes that are not nan.
        accuracy: share of all pixels found.
    """

    iou: np.ndarray
    class_accuracy: np.ndarray
    miou: float
    accuracy: float


def score(matched: np.ndarray, present: np.ndarray | None = None) -> Scores:
    """Score a table whose column c holds the pixels predicted as class c.

    ``iou_c = tp_c / (truth_c + predicted_c - tp_c)``. Columns beyond the classes are predictions
    of nothing: they are misses of the true class and false alarms of none.

    Args:
        matched: pixel counts (C, at least C).
        present: (C,) bool, classes that the truth has, even where their row here is empty because
            the table is a block of a larger one; such a class scores 0 rather than nan.

    Returns:
        The `Scores`.
    """
    num_classes = matched.shape[0]
    hits = matched.diagonal().astype(np.float64)
    truth = matched.sum(axis=1)
    predicted = matched[:, :num_classes].sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the nan that stands for an absent class
        iou = hits / (truth + predicted - hits)
        class_accuracy = hits / truth
        accuracy = hits.sum() / truth.sum()
    if present is not None:
        iou[present & np.isnan(iou)] = 0
    scored = ~np.isnan(iou)
    miou = iou[scored].mean() if scored.any() else float("nan")
    return Scores(iou, class_accuracy, float(miou), float(accuracy))


class ClusterMetrics(Metric):
    """Unsupervised segmentation scores over a labelled set, streamed batch by batch.

    The state is one int64 table of pixel counts (num_classes, num_clusters), summed over
    batches and over processes; so the order and the size of batches change nothing. It costs no
    more than the table: logits are enlarged and compared pixel by pixel without being kept.

    `compute` matches clusters to classes (over the whole set, once; see `match_clusters`), then
    gives

    - ``miou``, ``accuracy``: mean IoU over the classes present in truth or prediction, and the
      share of labelled pixels that are right;
    - ``iou``, ``class_accuracy``: the same per class (num_classes,), nan for absent classes;
    - ``pixels``: labelled pixels of each class (num_classes,), int64;
    - ``assignment``: class of each cluster (num_clusters,), -1 for unmatched clusters;
    - ``confusion``: pixel counts (num_classes, num_clusters) that all of this follows from;
    - with `things`: ``things_miou``, ``things_accuracy``, ``stuff_miou``, ``stuff_accuracy``.
      Each is scored on its own block of the matched table, as the field's partitioned evaluation
      does: pixels of things that were predicted as things, and likewise for stuff. Confusions
      between the two groups count in ``miou`` and ``accuracy`` only, and so do pixels of
      unmatched clusters;
    - with `legacy`: ``legacy_things_miou`` and so on, which are the last four as the authors'
      release computes them: from blocks in the clusters' order (`clusters_in_release_order`). They
      are wrong, by up to 20 points, and serve to compare with figures computed in that way. The
      release's overall scores are right.

    With more clusters than classes, the pixels of unmatched clusters count as wrong: Hungarian
    matching punishes over-clustering, majority does not. With fewer, the classes without a cluster
    are never predicted, and score 0 where the truth has them.

    A matching learned from the labels it is scored on has seen the answers, if only through a few
    numbers. `assignment` takes one that was learned elsewhere.

    Args:
        num_clusters: channels K of the logits.
        num_classes: classes of the labels, which are 0 .. num_classes - 1.
        ignore_index: label of pixels that count nowhere.
        class_names: names for `table`; by default the class numbers.
        things: classes that are things; the others are stuff. None: no partitioned scores.
        matching: how clusters and classes are matched.
        assignment: class of each cluster, -1 for none: a matching learned elsewhere, to be taken
            as it is.
        legacy: give the release's scores of things and stuff too.

    Raises:
        ValueError: arguments that do not fit together.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor

    def __init__(
        self,
        num_clusters: int,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        things: Sequence[int] | None = None,
        matching: Matching = "hungarian",
        assignment: Sequence[int] | None = None,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        if num_clusters < 1 or num_classes < 1:
            raise ValueError(
                "ClusterMetrics needs at least one cluster and one class; "
                f"got num_clusters={num_clusters}, num_classes={num_classes}."
            )
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"ClusterMetrics: class_names holds {len(class_names)} names for "
                f"{num_classes} classes; give one name per class."
            )
        if things is not None and not set(things) <= set(range(num_classes)):
            raise ValueError(
                f"ClusterMetrics: things {list(things)} must be class numbers from 0 to "
                f"{num_classes - 1}."
            )
        if assignment is not None and not (
            len(assignment) == num_clusters and set(assignment) <= set(range(-1, num_classes))
        ):
            raise ValueError(
                f"ClusterMetrics: assignment must give each of the {num_clusters} clusters a class "
                f"from 0 to {num_classes - 1}, or -1; got {list(assignment)}."
            )
        if legacy and not (
            num_clusters == num_classes
            and things is not None
            and set(things) == set(range(len(things)))
            and matching == "hungarian"
            and assignment is None
        ):
            raise ValueError(
                "ClusterMetrics: the release's scores of things and stuff (legacy) exist only for "
                "as many clusters as classes, matched one to one on the same labels, and for "
                f"tables whose things come first; got {num_clusters} clusters, {num_classes} "
                f"classes, things {things}, matching {matching}."
            )
        check_matching(matching)
        self.matching = matching
        self.assignment = None if assignment is None else np.asarray(assignment, dtype=np.int64)
        self.legacy = legacy
        self._last: tuple[Tensor, Tensor] | None = None  # clusters and labels of the last batch
        self.num_clusters = num_clusters
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = [str(name) for name in (class_names or range(num_classes))]
        self.things = None if things is None else sorted(set(things))
        self.add_state(
            "confusion",
            default=torch.zeros(num_classes, num_clusters, dtype=torch.int64),
            dist_reduce_fx="sum",
        )

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (B, num_clusters, h, w), enlarged bilinearly to the labels' size.
            labels: true classes (B, H, W), integer; `ignore_index` marks void pixels.

        Raises:
            ValueError: where the shapes do not fit, or (on the CPU) a label is out of range.
        """
        if logits.ndim != 4 or logits.shape[1] != self.num_clusters:
            raise ValueError(
                f"ClusterMetrics: logits must be (B, {self.num_clusters}, h, w), "
                f"got {tuple(logits.shape)}."
            )
        if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
            raise ValueError(
                f"ClusterMetrics: labels must be ({logits.shape[0]}, H, W), "
                f"got {tuple(labels.shape)}."
            )
        prediction = ops.label_map(logits, (labels.shape[1], labels.shape[2]))
        labels = labels.long()
        self.confusion += ops.confusion_matrix(
            prediction, labels, self.num_clusters, self.num_classes, self.ignore_index
        )
        self._last = prediction, labels

    @property
    def image_counts(self) -> Tensor:
        """(B, num_classes, num_clusters) int64, counts of each image in the last batch."""
        if self._last is None:
            return torch.zeros(0, self.num_classes, self.num_clusters, dtype=torch.int64)
        prediction, labels = self._last
        B, K = len(prediction), self.num_clusters
        # Clusters of their own for each image: one table holds all.
        first = torch.arange(0, B * K, K, device=prediction.device).view(B, 1, 1)
        table = ops.confusion_matrix(
            prediction + first, labels, max(B, 1) * K, self.num_classes, self.ignore_index
        )
        return table.view(self.num_classes, -1, K)[:, :B].transpose(0, 1).contiguous()

    def compute(self) -> dict[str, Tensor]:
        """Match clusters to classes and score; the class docstring names the entries."""
        confusion = self.confusion.cpu().numpy()
        assignment = self.assignment
        if assignment is None:
            assignment = match_clusters(confusion, self.matching)
        matched = reorder_clusters(confusion, assignment)
        overall = score(matched)
        result: dict[str, Tensor] = {
            "miou": torch.tensor(overall.miou),
            "accuracy": torch.tensor(overall.accuracy),
            "iou": torch.from_numpy(overall.iou),
            "class_accuracy": torch.from_numpy(overall.class_accuracy),
            "pixels": torch.from_numpy(confusion.sum(axis=1)),
            "assignment": torch.from_numpy(assignment),
            "confusion": self.confusion.cpu().clone(),
        }
        if self.things is not None:
            stuff = [c for c in range(self.num_classes) if c not in self.things]
            for name, group in (("things", self.things), ("stuff", stuff)):
                part = score(matched[np.ix_(group, group)], confusion[group].sum(axis=1) > 0)
                result[f"{name}_miou"] = torch.tensor(part.miou)
                result[f"{name}_accuracy"] = torch.tensor(part.accuracy)
        if self.legacy:
            assert self.things is not None
            first = len(self.things)
            ordered = clusters_in_release_order(confusion, assignment)
            for name, block in (
                ("things", ordered[:first, :first]),
                ("stuff", ordered[first:, first:]),
            ):
                part = score(block)
                result[f"legacy_{name}_miou"] = torch.tensor(part.miou)
                result[f"legacy_{name}_accuracy"] = torch.tensor(part.accuracy)
        return result

    def table(self) -> str:
        """Describe the scores as text: one line per class, then the means; percentages."""
        # torchmetrics squeezes tensors of one entry, as a single class or cluster gives.
        result = {name: value.reshape(-1) for name, value in self.compute().items()}
        share = result["pixels"] / result["pixels"].sum()
        clusters = clusters_by_class(result["assignment"].tolist(), self.num_classes)
        groups = [("all", "")]
        if self.things is not None:
            groups += [("things", "things_"), ("stuff", "stuff_")]
        if self.legacy:
            groups += [(f"{name} (legacy)", f"legacy_{name}_") for name in ("things", "stuff")]
        width = max(5, *(len(name) for name in (*self.class_names, *dict(groups))))
        lines = [f"{'class':<{width}}  cluster  pixels    IoU  accuracy"]
        for c, name in enumerate(self.class_names):
            lines.append(
                f"{name:<{width}}  {_few(clusters[c]):>7}  {_percent(share[c]):>6}  "
                f"{_percent(result['iou'][c]):>5}  {_percent(result['class_accuracy'][c]):>8}"
            )
        for title, prefix in groups:
            lines.append(
                f"{title:<{width}}  {'':>7}  {'':>6}  {_percent(result[prefix + 'miou']):>5}  "
                f"{_percent(result[prefix + 'accuracy']):>8}"
            )
        return "\n".join(lines)


def clusters_by_class(assignment: Sequence[int], num_classes: int) -> list[list[int]]:
    """The clusters of each class, from the class of each cluster."""
    return [[k for k, c in enumerate(assignment) if c == number] for number in range(num_classes)]


def _few(clusters: Sequence[int], most: int = 7) -> str:
    """Numbers in as many characters as there is room for."""
    text = ",".join(map(str, clusters)) or "-"
    shown = len(clusters)
    while len(text) > most and shown > 0:
        shown -= 1
        text = ",".join([*map(str, clusters[:shown]), f"+{len(clusters) - shown}"])
    return text


def _percent(value: Tensor) -> str:
    return "-" if value.isnan() else f"{100 * float(value):.1f}"
