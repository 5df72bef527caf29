"""Scoring clusterings against labelled sets."""

from densesiam.evaluation.metrics import ClusterMetrics, match_clusters, reorder_clusters

__all__ = ["ClusterMetrics", "match_clusters", "reorder_clusters"]
