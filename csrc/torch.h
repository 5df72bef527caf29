// torch's headers, its stable ABI only, for the oldest torch that a library loads into: a call to
// what is newer does not compile. Nothing else includes torch.
#pragma once

// clang-format off
#include "stable_abi.h"  // first: torch's headers read it
// clang-format on

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
