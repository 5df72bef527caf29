// Boxes in the coordinates' own type.
#pragma once

#include "stream.h"

namespace densesiam {

// Calls body(Type<T>{}, Type<C>{}, boxes of type C): T the features' type, C that of coordinates,
// double where the features or the boxes are. Boxes may be cast up, never down.
template <class Body>
void dispatch_coordinates(const char* op, const Tensor& features, const Tensor& boxes,
                          const Body& body) {
  dispatch_box(op, boxes.scalar_type(), [&](auto box_type) {
    using Box = typename decltype(box_type)::type;
    const Tensor box = in_layout(boxes, Layout::planar);
    dispatch_float(op, features.scalar_type(), [&](auto type) {
      using T = typename decltype(type)::type;
      if constexpr (std::is_same_v<T, double> && std::is_same_v<Box, float>) {
        body(type, Type<double>{}, torch::stable::to(box, ScalarType::Double));
      } else {
        body(type, box_type, box);
      }
    });
  });
}

}  // namespace densesiam
