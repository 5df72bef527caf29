// Checks that overlap_sample's host code makes on every device before touching memory.
#pragma once

#include "host.h"

namespace densesiam {

inline void check_overlap_sample(const Tensor& features, const Tensor& boxes,
                                 const std::vector<std::int64_t>& size) {
  check(features.dim() == 4, "overlap_sample: features must be (B, C, H, W), got shape ",
        shape_of(features));
  check(boxes.dim() == 2 && boxes.size(0) == features.size(0) && boxes.size(1) == 4,
        "overlap_sample: boxes must be (B, 4) with B = ", features.size(0), ", got shape ",
        shape_of(boxes));
  check(size.size() == 2 && size[0] > 0 && size[1] > 0,
        "overlap_sample: size must be two positive integers");
  check(features.numel() == 0 || (features.size(2) > 0 && features.size(3) > 0),
        "overlap_sample: features have no pixels: shape ", shape_of(features));
}

}  // namespace densesiam
