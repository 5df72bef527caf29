"""The table of contents: every operator's schema, one line each.

The C++ libraries and the Triton kernels implement exactly these; the public functions in this
package check, flatten and dispatch. Pixel-wise operators take (B, C, P), the spatial axes
flattened. What a forward returns beyond its result is what its backward needs.

Arguments stand in the order of the public function. A backward takes the gradients, then what it
needs of forward's arguments, then what forward kept, then what is wanted.
"""

SCHEMAS = {
    "overlap_sample": "(Tensor features, Tensor boxes, SymInt[] size) -> Tensor",
    "overlap_sample_backward": "(Tensor grad, Tensor boxes, SymInt[] size, bool channels_last) -> Tensor",
    "pixel_similarity": "(Tensor p, Tensor z, str kind, Tensor? weight, str reduction) -> (Tensor, Tensor)",
    "pixel_similarity_backward": "(Tensor grad, Tensor p, Tensor z, str kind, Tensor? weight, str reduction, Tensor statistics) -> Tensor",
    "overlap_similarity": "(Tensor p, Tensor z, Tensor? boxes_p, Tensor? boxes_z, SymInt[] size, str kind, Tensor? weight, str reduction) -> (Tensor, Tensor)",
    "overlap_similarity_backward": "(Tensor grad, Tensor p, Tensor z, Tensor? boxes_p, Tensor? boxes_z, SymInt[] size, str kind, Tensor? weight, str reduction, Tensor statistics) -> Tensor",
    "region_pool": "(Tensor features, Tensor logits) -> (Tensor, Tensor, Tensor)",
    "region_pool_backward": "(Tensor grad, Tensor? grad_mass, Tensor features, Tensor logits, Tensor log_sum, bool need_features, bool need_logits) -> (Tensor, Tensor)",
    "pseudo_label_loss": "(Tensor logits, Tensor? targets, str rebalance, Tensor? counts, str reduction) -> (Tensor, Tensor, Tensor, Tensor)",
    "pseudo_label_loss_backward": "(Tensor grad, Tensor logits, str reduction, Tensor log_sum, Tensor labels, Tensor class_weights) -> Tensor",
    "label_map": "(Tensor logits, SymInt[] size) -> Tensor",
    "confusion_matrix": "(Tensor prediction, Tensor label, SymInt num_predictions, SymInt num_classes, SymInt ignore_index) -> Tensor",
}  # fmt: skip
