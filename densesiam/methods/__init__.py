"""Training methods as Lightning modules."""

from densesiam.methods.method import Method
from densesiam.methods.pretraining import DenseSiamPretraining
from densesiam.methods.segmentation import DenseSiamSegmentation

METHODS: dict[str, type[Method]] = {
    method.__name__: method for method in (DenseSiamPretraining, DenseSiamSegmentation)
}
"""By the name that a checkpoint has under `Method.KEY`."""

__all__ = ["METHODS", "DenseSiamPretraining", "DenseSiamSegmentation", "Method"]
