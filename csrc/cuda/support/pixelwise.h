// What the host code of pixel-wise operations shares: inputs in one layout, weights, means.
#pragma once

#include "../device/pixels.cuh"
#include "stream.h"

namespace densesiam {

inline PixelShape pixel_shape(const char* op, const Tensor& tensor) {
  check_images(op, tensor);
  return {unsigned(tensor.size(0)), unsigned(tensor.size(1)), unsigned(tensor.size(2))};
}

// Maps of one pixel an image are both layouts at once; lanes on channels suit them better.
inline bool reads_pixels(Layout layout, const Tensor& tensor) {
  return layout == Layout::pixels || tensor.size(2) == 1;
}

// Whether neighbouring elements can be read in 16-byte packs.
template <class T>
bool reads_packs(bool channels_last, const Tensor& tensor,
                 std::initializer_list<const Tensor*> all) {
  bool fits = true;
  for (const Tensor* each : all) {
    fits &= packs_align<T>(channels_last ? tensor.size(1) : tensor.size(2), each->const_data_ptr(),
                           each->const_data_ptr());
  }
  return fits;
}

// The pointer, or null.
template <class A>
const A* optional_data(const std::optional<Tensor>& tensor) {
  return tensor ? data<A>(*tensor) : nullptr;
}

// out = sum of parts / (pixels x sum of weights); see weighted_mean.
template <class A>
void launch_mean(const A* parts, unsigned count, const A* numerator, const A* weight,
                 const PixelShape& shape, A* out, cudaStream_t stream) {
  launch(weighted_mean<A>, dim3(1), dim3(kThreads), 0, stream, parts, count, numerator, weight,
         shape.batch, shape.pixels, out);
}

// The gradient of the loss as kernels take it; `scale` keeps the memory of a mean's.
template <class A>
Upstream<A> upstream_of(const Tensor& grad, bool mean, const std::optional<Tensor>& weight,
                        const PixelShape& shape, Tensor& scale, cudaStream_t stream) {
  if (!mean) return {data<A>(grad), false};
  scale = torch::stable::new_empty(grad, {});
  launch_mean<A>(nullptr, 0, data<A>(grad), optional_data<A>(weight), shape, mutable_data<A>(scale),
                 stream);
  return {data<A>(scale), true};
}

}  // namespace densesiam
