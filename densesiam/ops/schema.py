"""The table of contents: every operator's schema, one line each.

The C++ libraries and the Triton kernels implement exactly these; the public functions in this
package check, flatten and dispatch. Pixel-wise operators take (B, C, P), the spatial axes
flattened. What a forward returns beyond its result is what its backward needs.
"""

SCHEMAS = {
    "overlap_sample": "(Tensor features, Tensor boxes, SymInt[] size) -> Tensor",
    "overlap_sample_backward": "(Tensor grad, Tensor boxes, SymInt[] size, bool channels_last) -> Tensor",
    "pixel_similarity": "(Tensor p, Tensor z, Tensor? weight, str kind, str reduction) -> (Tensor, Tensor)",
    "pixel_similarity_backward": "(Tensor grad, Tensor p, Tensor z, Tensor? weight, Tensor statistics, str kind, str reduction) -> Tensor",
    "overlap_similarity": "(Tensor p, Tensor z, Tensor? boxes_p, Tensor? boxes_z, Tensor? weight, SymInt[] size, str kind, str reduction) -> (Tensor, Tensor)",
    "overlap_similarity_backward": "(Tensor grad, Tensor p, Tensor z, Tensor? boxes_p, Tensor? boxes_z, Tensor? weight, Tensor statistics, SymInt[] size, str kind, str reduction) -> Tensor",
    "region_pool": "(Tensor features, Tensor logits) -> (Tensor, Tensor, Tensor)",
    "region_pool_backward": "(Tensor grad, Tensor? grad_mass, Tensor features, Tensor logits, Tensor log_sum, bool need_features, bool need_logits) -> (Tensor, Tensor)",
    "pseudo_label_loss": "(Tensor logits, Tensor? targets, Tensor? counts, str rebalance, str reduction, Tensor? weight=None) -> (Tensor, Tensor, Tensor, Tensor)",
    "pseudo_label_loss_backward": "(Tensor grad, Tensor logits, Tensor log_sum, Tensor labels, Tensor class_weights, str reduction, Tensor? weight=None) -> Tensor",
    "label_map": "(Tensor logits, SymInt[] size) -> Tensor",
    "confusion_matrix": "(Tensor prediction, Tensor label, SymInt num_predictions, SymInt num_classes, SymInt ignore_index) -> Tensor",
}  # fmt: skip
