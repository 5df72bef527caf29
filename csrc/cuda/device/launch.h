// Launching a kernel, and its shared memory: CUDA's own under nvcc, the emulator's otherwise
// (tests/emulator; it defines DENSESIAM_EMULATOR before including any kernel).
#pragma once

#include "access.h"

#ifdef DENSESIAM_EMULATOR
// In a kernel: T name[count], one for the block; and T name[], of the bytes given at launch.
#define DENSESIAM_SHARED(T, name, count) \
  T* const name = static_cast<T*>(       \
      ::emulator::machine().shared(sizeof(T) * (count), {__PRETTY_FUNCTION__, __LINE__}))
#define DENSESIAM_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::emulator::machine().dynamic_shared())
#else
#define DENSESIAM_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define DENSESIAM_DYNAMIC_SHARED(T, name)                         \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared)
#endif

namespace densesiam {
inline namespace DENSESIAM_TARGET {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
#ifdef DENSESIAM_EMULATOR
  (void)stream;
  ::emulator::launch(kernel, grid, block, shared_bytes, arguments...);
#else
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  // clang-format on
#endif
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
