"""Training methods as Lightning modules."""

from densesiam.methods.segmentation import DenseSiamSegmentation

__all__ = ["DenseSiamSegmentation"]
