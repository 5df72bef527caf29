// densesiam._info: what this build holds, for collect_env and for messages about mismatched builds.
// Apart from the op libraries, which need no Python ABI.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_info, module) {
  pybind11::dict build;
  build["version"] = DENSESIAM_VERSION;
  build["torch"] = DENSESIAM_TORCH;
  build["stable_abi"] = DENSESIAM_STABLE_ABI;
  build["compiler"] = DENSESIAM_COMPILER;
  build["cxx_flags"] = DENSESIAM_CXX_FLAGS;
  build["cuda"] = DENSESIAM_CUDA;
  build["architectures"] = DENSESIAM_ARCHITECTURES;
  build["nvcc_flags"] = DENSESIAM_NVCC_FLAGS;
  module.attr("build") = build;
}
