// The oldest torch that the libraries load into: the first byte is its major version, the second
// its minor version. torch's headers read it.
#pragma once

#define TORCH_TARGET_VERSION 0x020a000000000000
