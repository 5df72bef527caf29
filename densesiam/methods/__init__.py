"""Training methods as Lightning modules."""

from densesiam.methods.base import Method
from densesiam.methods.picie import PiCIE
from densesiam.methods.pretraining import DenseSiamPretraining
from densesiam.methods.segmentation import DenseSiamSegmentation
from densesiam.methods.segmenter import Segmenter

METHODS: dict[str, type[Method]] = {
    method.__name__: method for method in (DenseSiamPretraining, DenseSiamSegmentation, PiCIE)
}
"""By the name that a checkpoint has under `Method.KEY`."""

__all__ = [
    "METHODS",
    "DenseSiamPretraining",
    "DenseSiamSegmentation",
    "Method",
    "PiCIE",
    "Segmenter",
]
