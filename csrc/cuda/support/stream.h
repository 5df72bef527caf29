// What every CUDA op's host code shares: the tensor's device, the current stream, launch errors.
// The emulator compiles the same host code, for tensors on the CPU (tests/emulator).
#pragma once

#include <stdexcept>
#include <string>

#include "../../args.h"

#ifdef DENSESIAM_EMULATOR
#define DENSESIAM_DEVICE_KEY CPU
#else
#include <dlfcn.h>
#define DENSESIAM_DEVICE_KEY CUDA
#endif

namespace densesiam {

#ifdef DENSESIAM_EMULATOR
class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};
#else
// The one function that torch's CUDA library alone has. It is looked up rather than linked, so that
// this library loads next to a torch without CUDA too, and says there what is missing.
inline void* current_stream(std::int32_t device) {
  using Function = AOTITorchError (*)(std::int32_t, void**);
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    if (!symbol) throw std::runtime_error("densesiam: this torch has no CUDA");
    return reinterpret_cast<Function>(symbol);
  }();
  void* stream;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

// Makes the tensor's device current for a scope, and knows the stream to launch on.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}

  cudaStream_t stream() const { return static_cast<cudaStream_t>(current_stream(index_)); }

 private:
  torch::stable::accelerator::DeviceIndex index_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

// Call after a launch: an error in its configuration is reported now, not at the next CUDA call.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(
        std::string(op) + ": the CUDA kernel could not be launched: " + cudaGetErrorString(error));
  }
}

// Kernels index images with 64-bit offsets and what is in an image with 32-bit ones (64-bit
// division is an order of magnitude slower), so no (B, ...) tensor may have 2^31 elements an image.
inline void check_images(const char* op, const Tensor& tensor) {
  std::int64_t elements = 1;
  for (std::int64_t dim = 1; dim < tensor.dim(); ++dim) elements *= tensor.size(dim);
  const std::int64_t most = (std::int64_t(1) << 31) - 1;
  check(
      tensor.size(0) <= most && elements <= most, op,
      ": the CUDA kernels take fewer than 2^31 images of fewer than 2^31 elements each, got shape ",
      shape_of(tensor));
}

}  // namespace densesiam
