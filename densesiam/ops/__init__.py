"""The fused operations: the same names and arguments as :mod:`densesiam.reference`, at speed.

Every function checks its arguments, chooses a backend (:func:`use_backend`, :func:`explain`) and is
differentiable, compilable and autocast-aware wherever that backend runs.
"""

from densesiam.geometry import overlap_boxes
from densesiam.ops._backends import Explanation, explain, load_backends, use_backend
from densesiam.ops._registry import NAMESPACE, register_namespace
from densesiam.ops.confusion_matrix import confusion_matrix
from densesiam.ops.label_map import label_map
from densesiam.ops.overlap_sample import overlap_sample
from densesiam.ops.overlap_similarity import overlap_similarity
from densesiam.ops.pixel_similarity import pixel_similarity
from densesiam.ops.pseudo_label_loss import pseudo_label_loss
from densesiam.ops.region_pool import region_pool
from densesiam.ops.roi_align import roi_align

__all__ = [
    "Explanation",
    "confusion_matrix",
    "explain",
    "label_map",
    "overlap_boxes",
    "overlap_sample",
    "overlap_similarity",
    "pixel_similarity",
    "pseudo_label_loss",
    "region_pool",
    "roi_align",
    "use_backend",
]

register_namespace(NAMESPACE)
load_backends()
