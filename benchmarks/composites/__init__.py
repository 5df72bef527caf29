"""Everything after the encoder: heads, losses, and backward to features and parameters."""

from benchmarks.composites import pretraining, segmentation

MODULES = {"segmentation": segmentation, "pretraining": pretraining}
