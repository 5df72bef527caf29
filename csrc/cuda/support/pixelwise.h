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

// How neighbouring elements of all these can be read, each as long as the tensor.
template <class T>
Access access_of(bool channels_last, const Tensor& tensor,
                 std::initializer_list<const Tensor*> all) {
  Access access{channels_last, true, true};
  for (const Tensor* each : all) {
    const void* at = each->const_data_ptr();
    access.packs &= packs_align<T>(channels_last ? tensor.size(1) : tensor.size(2), at, at);
    access.aligned &= packs_align<T>(0, at, at);
  }
  return access;
}

// Memory of a result: kernels fill it, but where there is nothing to run them on.
inline Tensor empty_or_zeros(const Tensor& input, const Sizes& sizes, ScalarType dtype) {
  return input.numel() == 0 ? torch::stable::new_zeros(input, sizes, dtype)
                            : torch::stable::new_empty(input, sizes, dtype);
}

// The source of a second map that is read as the first.
template <class Source>
Source second_source(Source source, const typename Source::T* base) {
  source.base = base;
  if constexpr (Source::kStaged) source.slot = 1;
  return source;
}

// Weights (B,) of any type that checked_weight lets through, as kernels read them.
template <class A>
ImageWeights<A> image_weights(const std::optional<Tensor>& weight) {
  if (!weight) return {nullptr, WeightType::none};
  const auto type = [&] {
    switch (weight->scalar_type()) {
      case ScalarType::Bool:
        return WeightType::boolean;
      case ScalarType::Half:
        return WeightType::float16;
      case ScalarType::BFloat16:
        return WeightType::bfloat16;
      case ScalarType::Float:
        return WeightType::float32;
      default:
        return WeightType::float64;
    }
  }();
  return {weight->const_data_ptr(), type};
}

// The mean of all losses from the sums of parts of each image's; see weighted_mean.
template <class A>
void launch_mean(const A* parts, unsigned count, const std::optional<Tensor>& weight,
                 const PixelShape& shape, A* out, cudaStream_t stream) {
  launch(weighted_mean<A>, dim3(1), dim3(kThreads), 0, stream, parts, count,
         image_weights<A>(weight), shape.batch, shape.pixels, out);
}

// The gradient of the loss as kernels take it.
template <class A>
Upstream<A> upstream_of(const Tensor& grad, bool mean, const std::optional<Tensor>& weight,
                        const PixelShape& shape) {
  return {data<A>(grad), mean, image_weights<A>(weight), shape.batch};
}

}  // namespace densesiam
