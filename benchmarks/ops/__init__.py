"""One module an operation; each has ``problems(batch, channels_last)``."""

from benchmarks.ops import (
    confusion_matrix,
    label_map,
    overlap_sample,
    overlap_similarity,
    pixel_similarity,
    pseudo_label_loss,
    region_pool,
    roi_align,
)

MODULES = {
    "overlap_sample": overlap_sample,
    "pixel_similarity": pixel_similarity,
    "overlap_similarity": overlap_similarity,
    "region_pool": region_pool,
    "pseudo_label_loss": pseudo_label_loss,
    "label_map": label_map,
    "confusion_matrix": confusion_matrix,
    "roi_align": roi_align,
}
