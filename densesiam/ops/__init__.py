"""The fused operations: the same names and arguments as :mod:`densesiam.reference`, at speed.

Every function checks its arguments, chooses a backend (:func:`use_backend`, :func:`explain`) and is
differentiable, compilable and autocast-aware wherever that backend runs.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

from densesiam.geometry import overlap_boxes
from densesiam.ops._backends import Explanation, explain, load_backends, use_backend
from densesiam.ops._flops import register_flops
from densesiam.ops._operations import NAMESPACE, OPERATIONS, register_namespace

if TYPE_CHECKING:  # which does not see what the loop below exports
    from densesiam.ops.confusion_matrix import confusion_matrix as confusion_matrix
    from densesiam.ops.label_map import label_map as label_map
    from densesiam.ops.overlap_sample import overlap_sample as overlap_sample
    from densesiam.ops.overlap_similarity import overlap_similarity as overlap_similarity
    from densesiam.ops.pixel_similarity import pixel_similarity as pixel_similarity
    from densesiam.ops.pseudo_label_loss import pseudo_label_loss as pseudo_label_loss
    from densesiam.ops.region_pool import region_pool as region_pool
    from densesiam.ops.roi_align import roi_align as roi_align

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
for _name in OPERATIONS:  # a function takes the place of the module that it is from
    globals()[_name] = getattr(importlib.import_module(f"{__name__}.{_name}"), _name)

__all__ = ["Explanation", "explain", "overlap_boxes", "use_backend", *OPERATIONS]

register_namespace(NAMESPACE)
load_backends()
register_flops()
