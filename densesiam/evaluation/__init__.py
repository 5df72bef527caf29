"""Scoring clusterings against labelled sets."""

from densesiam.evaluation.matching import match_clusters, reorder_clusters
from densesiam.evaluation.metrics import ClusterMetrics

__all__ = ["ClusterMetrics", "match_clusters", "reorder_clusters"]
