// What every CUDA op's host code shares: the tensor's device, the current stream, launch errors.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "../common/host.h"

namespace densesiam {

// Makes the tensor's device current for a scope, and knows the stream to launch on.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}

  cudaStream_t stream() const {
    return static_cast<cudaStream_t>(
        torch::stable::accelerator::getCurrentStream(index_).nativeHandle());
  }

 private:
  torch::stable::accelerator::DeviceIndex index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// Call after a launch: an error in its configuration is reported now, not at the next CUDA call.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(
        std::string(op) + ": the CUDA kernel could not be launched: " + cudaGetErrorString(error));
  }
}

// Calls body(uint32_t{}) if every index fits 32 bits (64-bit division is an order slower), else
// body(uint64_t{}). Half of the range is kept free for strides of grid loops.
template <class Body>
auto dispatch_index(std::int64_t largest, const Body& body) {
  return largest < (std::int64_t(1) << 31) ? body(Type<std::uint32_t>{})
                                           : body(Type<std::uint64_t>{});
}

}  // namespace densesiam
