"""Training methods as Lightning modules."""

from densesiam.methods.pretraining import DenseSiamPretraining
from densesiam.methods.segmentation import DenseSiamSegmentation

__all__ = ["DenseSiamPretraining", "DenseSiamSegmentation"]
