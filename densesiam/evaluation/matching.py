"""Which class each cluster stands for."""

from typing import Literal, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

Matching = Literal["hungarian", "majority"]


def check_matching(kind: str) -> None:
    """Refuse what is no kind of matching.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in get_args(Matching):
        raise ValueError(f"matching must be one of {', '.join(get_args(Matching))}, got {kind!r}")


def match_clusters(confusion: np.ndarray, kind: Matching = "hungarian") -> np.ndarray:
    """Give each cluster at most one class, by pixel counts.

    - ``"hungarian"``: one to one. The assignment ``a`` that maximises
      ``sum_k confusion[a[k], k]`` while no class has two clusters.
    - ``"majority"``: many to one. Each cluster takes the class that most of its pixels have, the
      lower number on a tie: the same sum without the constraint. The score of a clustering with
      more clusters than classes; with as many, it is an upper bound for the other.

    Args:
        confusion: pixel counts (num_classes, num_clusters); rows are true classes.
        kind: which of the two.

    Returns:
        Class of each cluster (num_clusters,), int64; -1 for the clusters that stand for none: those
        left over when there are more than classes, or (by majority) those without a pixel.

    Raises:
        ValueError: an unknown kind.
    """
    check_matching(kind)
    if kind == "majority":
        return np.where(confusion.any(axis=0), confusion.argmax(axis=0), -1).astype(np.int64)
    classes, clusters = linear_sum_assignment(confusion, maximize=True)
    assignment = np.full(confusion.shape[1], -1, dtype=np.int64)
    assignment[clusters] = classes
    return assignment


def reorder_clusters(confusion: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """Turn a class-by-cluster table into a class-by-predicted-class table.

    Anything that takes a block of the table (things alone, stuff alone) has to come after this:
    before it, the columns stand in the clusters' arbitrary order.

    Args:
        confusion: pixel counts (num_classes, num_clusters).
        assignment: class of each cluster, -1 for none, as from `match_clusters`; several clusters
            may have one class.

    Returns:
        Pixel counts (num_classes, num_classes + 1). Column c holds the pixels predicted as class
        c (zeros if no cluster was matched to it); the last column holds the pixels of all
        clusters that were matched to nothing.
    """
    num_classes = confusion.shape[0]
    matched = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
    np.add.at(matched.T, assignment, confusion.T)  # -1 is the last column
    return matched


def clusters_in_release_order(confusion: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """Order the table as the authors' release does before it takes things and stuff apart.

    There, rows follow the clusters: row k is the class matched to cluster k. The diagonal, and with
    it every overall score, is that of the matched table; but a block of it, such as its first 12
    rows and columns, holds the first 12 clusters, whatever classes these are.

    Args:
        confusion: pixel counts (C, C), rows are true classes.
        assignment: class of each cluster, one to one.

    Returns:
        Pixel counts (C, C), rows and columns in the clusters' order.
    """
    return confusion[assignment]
