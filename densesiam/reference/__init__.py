"""Every operation in plain, differentiable PyTorch, to be read beside its equation.

These are the oracle of all other backends. They take the arguments of :mod:`densesiam.ops`, allow
double backward, and check nothing but values that would give a wrong answer: use
:mod:`densesiam.ops` for checked arguments.
"""

from densesiam.reference.confusion_matrix import confusion_matrix
from densesiam.reference.label_map import label_map
from densesiam.reference.overlap_sample import overlap_sample
from densesiam.reference.overlap_similarity import overlap_similarity
from densesiam.reference.pixel_similarity import pixel_similarity
from densesiam.reference.pseudo_label_loss import pseudo_label_loss
from densesiam.reference.region_pool import region_pool
from densesiam.reference.roi_align import roi_align

__all__ = [
    "confusion_matrix",
    "label_map",
    "overlap_sample",
    "overlap_similarity",
    "pixel_similarity",
    "pseudo_label_loss",
    "region_pool",
    "roi_align",
]
