// torch's headers, its stable ABI only, for the oldest torch that a library loads into: a call to
// what is newer does not compile. Nothing else includes torch.
#pragma once

#include "stable_abi.h"
// Declares aoti_torch_get_current_cuda_stream.
#define USE_CUDA

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
