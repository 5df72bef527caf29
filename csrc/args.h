// What the host code of every device checks of an operator's arguments before memory is touched:
// number of dimensions, shape, type and device of each, forward and backward. An exported program
// or a caller of torch.ops comes here without Python's checks.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "host.h"

namespace densesiam {

using Sizes = std::vector<std::int64_t>;

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  std::int32_t types[2];
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(a.get(), &types[0]));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(b.get(), &types[1]));
  return types[0] == types[1] && a.get_device_index() == b.get_device_index();
}

// Requires that type and shape, and `like`'s device.
inline void check_tensor(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                         const Sizes& sizes, const Tensor& like) {
  check(tensor.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ",
        tensor.scalar_type());
  const auto given = tensor.sizes();
  check(std::equal(given.begin(), given.end(), sizes.begin(), sizes.end()), op, ": ", name,
        " must have shape ", sizes, ", got shape ", shape_of(tensor));
  check(on_one_device(tensor, like), op, ": ", name, " must be on the other arguments' device");
}

inline void check_optional(const char* op, const char* name, const std::optional<Tensor>& tensor,
                           ScalarType dtype, const Sizes& sizes, const Tensor& like) {
  if (tensor) check_tensor(op, name, *tensor, dtype, sizes, like);
}

// Requires (B, C, H, W) with pixels; sides are counted in 32 bits.
inline void check_map(const char* op, const char* name, const Tensor& map) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  check(map.dim() == 4, op, ": ", name, " must be (B, C, H, W), got shape ", shape_of(map));
  check(map.size(2) > 0 && map.size(3) > 0 && map.size(2) <= most && map.size(3) <= most, op, ": ",
        name, " must have 1 to 2^31 - 1 rows and columns, got shape ", shape_of(map));
}

inline void check_size(const char* op, const Sizes& size) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  check(size.size() == 2 && size[0] > 0 && size[1] > 0 && size[0] <= most && size[1] <= most, op,
        ": size must be two integers from 1 to 2^31 - 1, got ", size);
}

// Requires (B, 4) boxes, float32 or float64, for a map of B images.
inline void check_boxes(const char* op, const char* name, const Tensor& boxes, const Tensor& map) {
  const bool wide = boxes.scalar_type() == ScalarType::Double;
  check_tensor(op, name, boxes, wide ? ScalarType::Double : ScalarType::Float, {map.size(0), 4},
               map);
}

// Requires (R, 5) boxes, float32 or float64, and how roi_align reads them: the points of an axis
// are counted in 32 bits.
inline void check_rois(const char* op, const Tensor& boxes, const Tensor& like, const Sizes& size,
                       std::int64_t sampling_ratio) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const bool wide = boxes.scalar_type() == ScalarType::Double;
  check(boxes.dim() == 2, op, ": boxes must be (R, 5), got shape ", shape_of(boxes));
  check_tensor(op, "boxes", boxes, wide ? ScalarType::Double : ScalarType::Float,
               {boxes.size(0), 5}, like);
  check_size(op, size);
  check(sampling_ratio <= most / std::max(size[0], size[1]), op,
        ": sampling_ratio times size must be less than 2^31, got ", sampling_ratio, " for size ",
        size);
}

// Requires a gradient (R, C, Kh, Kw) of that many boxes, and (B, H, W) of maps with pixels.
inline void check_rois_backward(const char* op, const Tensor& grad, const Tensor& boxes,
                                const Sizes& maps, std::int64_t sampling_ratio) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  check_map(op, "grad", grad);
  check_rois(op, boxes, grad, {grad.size(2), grad.size(3)}, sampling_ratio);
  check(boxes.size(0) == grad.size(0), op, ": boxes must be (R, 5) with R = ", grad.size(0),
        ", got shape ", shape_of(boxes));
  check(maps.size() == 3 && maps[0] >= 0 && maps[1] > 0 && maps[2] > 0 && maps[1] <= most &&
            maps[2] <= most,
        op, ": maps must be (B, H, W) with 1 to 2^31 - 1 rows and columns, got ", maps);
}

// Requires two (B, C, P) of one shape, type and device.
inline void check_pair(const char* op, const Tensor& p, const Tensor& z) {
  check(p.dim() == 3 && p.size(1) > 0, op, ": p must be (B, C, P) with C >= 1, got shape ",
        shape_of(p));
  check_tensor(op, "z", z, p.scalar_type(), {p.size(0), p.size(1), p.size(2)}, p);
}

// Requires two (B, C, H, W) of one B, C, type and device, with values, and what goes with them.
inline void check_overlap(const char* op, const Tensor& p, const Tensor& z,
                          const std::optional<Tensor>& boxes_p,
                          const std::optional<Tensor>& boxes_z, const Sizes& size) {
  check_map(op, "p", p);
  check_map(op, "z", z);
  check(p.size(1) > 0, op, ": p must have at least one channel, got shape ", shape_of(p));
  check_tensor(op, "z", z, p.scalar_type(), {p.size(0), p.size(1), z.size(2), z.size(3)}, p);
  if (boxes_p) check_boxes(op, "boxes_p", *boxes_p, p);
  if (boxes_z) check_boxes(op, "boxes_z", *boxes_z, p);
  check_size(op, size);
}

// The weights (B,) of the images in one piece, float or bool, or none.
inline std::optional<Tensor> checked_weight(const char* op, const std::optional<Tensor>& weight,
                                            const Tensor& features) {
  if (!weight) return weight;
  const ScalarType dtype = weight->scalar_type();
  check(dtype == ScalarType::Bool || dtype == ScalarType::Double || dtype == ScalarType::Float ||
            dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
        op, ": weight must be float or bool, got ", dtype);
  check_tensor(op, "weight", *weight, dtype, {features.size(0)}, features);
  return in_layout(*weight, Layout::planar);
}

// The gradient of a loss in one piece: () of a mean, else as the losses (B, *).
inline Tensor checked_grad(const char* op, const Tensor& grad, bool mean, const Sizes& losses,
                           const Tensor& features) {
  check_tensor(op, "grad", grad, accumulate_type(features.scalar_type()), mean ? Sizes{} : losses,
               features);
  return in_layout(grad, Layout::planar);
}

// A tensor that forward kept, in one piece.
inline Tensor checked_kept(const char* op, const char* name, const Tensor& kept, ScalarType dtype,
                           const Sizes& sizes, const Tensor& like) {
  check_tensor(op, name, kept, dtype, sizes, like);
  return in_layout(kept, Layout::planar);
}

// Requires features (B, C, P) and logits (B, N, P) of one B, P, type and device.
inline void check_regions(const char* op, const Tensor& features, const Tensor& logits) {
  check(features.dim() == 3 && logits.dim() == 3 && logits.size(1) > 0, op,
        ": features must be (B, C, P) and logits (B, N, P) with N >= 1, got shapes ",
        shape_of(features), " and ", shape_of(logits));
  check_tensor(op, "logits", logits, features.scalar_type(),
               {features.size(0), logits.size(1), features.size(2)}, features);
}

// Requires logits (B, K, P), and what goes with them.
inline void check_labelled(const char* op, const Tensor& logits,
                           const std::optional<Tensor>& targets,
                           const std::optional<Tensor>& counts) {
  check(logits.dim() == 3 && logits.size(1) > 0, op,
        ": logits must be (B, K, P) with K >= 1, got shape ", shape_of(logits));
  check_optional(op, "targets", targets, logits.scalar_type(),
                 {logits.size(0), logits.size(1), logits.size(2)}, logits);
  check_optional(op, "counts", counts, accumulate_type(logits.scalar_type()), {logits.size(1)},
                 logits);
}

// Requires integers of one shape and device, and a table of fewer than 2^31 cells.
inline void check_counted(const char* op, const Tensor& prediction, const Tensor& label,
                          std::int64_t num_predictions, std::int64_t num_classes) {
  const auto sizes = prediction.sizes();
  check_tensor(op, "label", label, label.scalar_type(), Sizes(sizes.begin(), sizes.end()),
               prediction);
  const std::int64_t most = std::int64_t(1) << 31;
  check(num_predictions > 0 && num_classes > 0 && num_predictions < most / num_classes, op,
        ": num_classes x num_predictions must be positive and less than 2^31, got ", num_classes,
        " x ", num_predictions);
}

}  // namespace densesiam
