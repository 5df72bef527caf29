"""Every operation in plain, differentiable PyTorch, to be read beside its equation.

These are the oracle of all other backends. They take the arguments of :mod:`densesiam.ops`, allow
double backward, and check nothing but values that would give a wrong answer: use
:mod:`densesiam.ops` for checked arguments.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which does not see what the loop below exports
    from densesiam.reference.confusion_matrix import confusion_matrix as confusion_matrix
    from densesiam.reference.label_map import label_map as label_map
    from densesiam.reference.overlap_sample import overlap_sample as overlap_sample
    from densesiam.reference.overlap_similarity import overlap_similarity as overlap_similarity
    from densesiam.reference.pixel_similarity import pixel_similarity as pixel_similarity
    from densesiam.reference.pseudo_label_loss import pseudo_label_loss as pseudo_label_loss
    from densesiam.reference.region_pool import region_pool as region_pool
    from densesiam.reference.roi_align import roi_align as roi_align

__all__ = []
for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        _name = _module.name  # a function takes the place of the module that it is from
        globals()[_name] = getattr(importlib.import_module(f"{__name__}.{_name}"), _name)
        __all__ += [_name]
