// What every op's host code shares, on CPU and CUDA: argument checks, memory layout, number types.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "numeric.h"
#include "torch.h"

// The emulator of the CUDA kernels registers the same host code under another name and key.
#ifndef DENSESIAM_NAMESPACE
#define DENSESIAM_NAMESPACE densesiam
#endif
// Two steps, so that macro arguments are expanded before torch's macros paste them into names.
#define DENSESIAM_EXPAND_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#define DENSESIAM_IMPL(key, m) DENSESIAM_EXPAND_IMPL(DENSESIAM_NAMESPACE, key, m)

namespace densesiam {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor's sizes, to be compared, and to be printed where a check fails.
struct Shape {
  const Tensor& tensor;

  friend bool operator==(const Shape& a, const Shape& b) {
    const auto sizes = a.tensor.sizes(), others = b.tensor.sizes();
    return std::equal(sizes.begin(), sizes.end(), others.begin(), others.end());
  }
};

inline Shape shape_of(const Tensor& tensor) { return {tensor}; }

// Messages are made without streams. A compiler may link the C++ runtime into the library
// (-static-libstdc++), and streams then take their locale from torch's copy of it, and crash.
inline void append(std::string& text, const std::string& part) { text += part; }
inline void append(std::string& text, std::int64_t number) { text += std::to_string(number); }
inline void append(std::string& text, const std::vector<std::int64_t>& sizes) {
  text += "(";
  const char* separator = "";
  for (const std::int64_t size : sizes) {
    text += separator + std::to_string(size);
    separator = ", ";
  }
  text += ")";
}
inline void append(std::string& text, const Shape& shape) {
  const auto sizes = shape.tensor.sizes();
  append(text, std::vector<std::int64_t>(sizes.begin(), sizes.end()));
}
inline void append(std::string& text, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      text += "float64";
      return;
    case ScalarType::Float:
      text += "float32";
      return;
    case ScalarType::Half:
      text += "float16";
      return;
    case ScalarType::BFloat16:
      text += "bfloat16";
      return;
    case ScalarType::Int:
      text += "int32";
      return;
    case ScalarType::Long:
      text += "int64";
      return;
    default:
      text += "another type";
  }
}

// Python checks the public functions' arguments first: what is thrown here meets those who call
// torch.ops.densesiam.* themselves, as a ValueError before torch 2.15 and as a RuntimeError since.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) {
    std::string message;
    (append(message, parts), ...);
    throw std::invalid_argument(message);
  }
}

// The two layouts that kernels read as they are. For (B, C, *spatial), P = product of spatial:
//   planar:  element (b, c, p) at (b * C + c) * P + p      ("NCHW")
//   pixels:  element (b, c, p) at (b * P + p) * C + c      ("channels_last")
enum class Layout { planar, pixels };

inline bool is_pixels_layout(const Tensor& tensor) {
  std::int64_t expected = 1;
  const auto matches = [&](std::int64_t dim) {
    const std::int64_t size = tensor.size(dim);
    const bool match = size == 1 || tensor.stride(dim) == expected;
    expected *= size;
    return match;
  };
  if (!matches(1)) return false;
  for (std::int64_t dim = tensor.dim() - 1; dim >= 2; --dim) {
    if (!matches(dim)) return false;
  }
  return matches(0);
}

inline Layout layout_of(const Tensor& tensor) {
  return !tensor.is_contiguous() && is_pixels_layout(tensor) ? Layout::pixels : Layout::planar;
}

// An uninitialised tensor of these sizes on `like`'s device; (B, C, *spatial) where it is `pixels`.
inline Tensor empty_in_layout(const std::vector<std::int64_t>& sizes, Layout layout,
                              ScalarType dtype, const Tensor& like) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  const auto next = [&](std::size_t dim) {
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(1, sizes[dim]);
  };
  const bool pixels = layout == Layout::pixels;
  if (pixels) next(1);
  for (std::size_t dim = sizes.size(); dim-- > (pixels ? 2 : 0);) next(dim);
  if (pixels) next(0);
  std::int32_t device_type;
  AtenTensorHandle out;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype)), device_type,
      like.get_device_index(), &out));
  return Tensor(out);
}

// The tensor itself if it already has that layout, else a copy that has.
inline Tensor in_layout(const Tensor& tensor, Layout layout) {
  const bool matches = layout == Layout::planar ? tensor.is_contiguous() : is_pixels_layout(tensor);
  if (matches) return tensor;
  const auto sizes = tensor.sizes();
  Tensor copy = empty_in_layout(std::vector<std::int64_t>(sizes.begin(), sizes.end()), layout,
                                tensor.scalar_type(), tensor);
  return torch::stable::copy_(copy, tensor);
}

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) with the storage type T of that dtype.
template <class Body>
auto dispatch_float(const char* op, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Double:
      return body(Type<double>{});
    case ScalarType::Float:
      return body(Type<float>{});
    case ScalarType::Half:
      return body(Type<half>{});
    case ScalarType::BFloat16:
      return body(Type<bfloat16>{});
    default:
      throw std::invalid_argument(std::string(op) +
                                  ": expected float64, float32, float16 or bfloat16 values");
  }
}

// Boxes are float32 or float64 and are never cast.
template <class Body>
auto dispatch_box(const char* op, ScalarType dtype, const Body& body) {
  check(dtype == ScalarType::Double || dtype == ScalarType::Float, op,
        ": boxes must be float32 or float64");
  return dtype == ScalarType::Double ? body(Type<double>{}) : body(Type<float>{});
}

// Whether a loss is reduced to its mean.
inline bool is_mean(const char* op, const std::string& reduction) {
  check(reduction == "mean" || reduction == "none", op,
        ": reduction must be one of mean, none, got '", reduction, "'");
  return reduction == "mean";
}

// The dtype of Accumulate<T>: float64 for float64, else float32.
inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace densesiam
