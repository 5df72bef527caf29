// Checks that roi_align's host code makes on every device before touching memory.
#pragma once

#include <limits>

#include "host.h"

namespace densesiam {

inline void check_roi_boxes(const char* op, const Tensor& boxes, std::int64_t sampling_ratio,
                            std::int64_t rows, std::int64_t columns) {
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  check(boxes.dim() == 2 && boxes.size(1) == 5, op, ": boxes must be (R, 5), got shape ",
        shape_of(boxes));
  check(rows > 0 && columns > 0, op, ": size must be two positive integers");
  check(std::max(rows, columns) <= most &&
            (sampling_ratio <= 0 || sampling_ratio <= most / std::max(rows, columns)),
        op, ": sampling_ratio times size must be less than 2^31");
}

inline void check_map(const char* op, std::int64_t height, std::int64_t width) {
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  check(height > 0 && width > 0 && height <= most && width <= most, op,
        ": maps must be at least a pixel and less than 2^31 pixels high and wide");
}

inline void check_roi_align(const Tensor& features, const Tensor& boxes,
                            const std::vector<std::int64_t>& size, std::int64_t sampling_ratio) {
  const char* op = "roi_align";
  check(features.dim() == 4, op, ": features must be (B, C, H, W), got shape ", shape_of(features));
  check(size.size() == 2, op, ": size must be two positive integers");
  check_map(op, features.size(2), features.size(3));
  check_roi_boxes(op, boxes, sampling_ratio, size[0], size[1]);
}

inline void check_roi_align_backward(const Tensor& grad, const Tensor& boxes,
                                     const std::vector<std::int64_t>& maps,
                                     std::int64_t sampling_ratio) {
  const char* op = "roi_align_backward";
  check(grad.dim() == 4, op, ": grad must be (R, C, Kh, Kw), got shape ", shape_of(grad));
  check(maps.size() == 3 && maps[0] >= 0, op, ": maps must be three integers, (B, H, W)");
  check_map(op, maps[1], maps[2]);
  check_roi_boxes(op, boxes, sampling_ratio, grad.size(2), grad.size(3));
  check(boxes.size(0) == grad.size(0), op, ": boxes must be (R, 5) with R = ", grad.size(0),
        ", got shape ", shape_of(boxes));
}

}  // namespace densesiam
