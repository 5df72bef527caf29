// Launching a kernel: <<<>>> under nvcc; the CPU emulator provides its own launch and defines
// DENSESIAM_EMULATOR before including any kernel.
#pragma once

#include "access.h"

#ifndef DENSESIAM_EMULATOR
namespace densesiam {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
}

}  // namespace densesiam
#endif
