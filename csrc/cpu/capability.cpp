// Tells Python which of its instruction sets the library chose (densesiam/_libraries.py).
#include "support/simd.h"

extern "C" __attribute__((visibility("default"))) const char* densesiam_cpu_capability() {
#if defined(__x86_64__) && !defined(DENSESIAM_PORTABLE)
  using densesiam::InstructionSet;
  switch (densesiam::instruction_set) {
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::baseline:
      return "baseline";
  }
#endif
  return "portable";
}
