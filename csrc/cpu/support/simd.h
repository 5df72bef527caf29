// One binary, the best instruction set of the machine it runs on.
//
// vectorised(body) runs a lambda compiled three times: for AVX-512 (x86-64-v4), AVX2 with FMA
// (x86-64-v3) and the baseline. Everything the lambda calls must be force-inlined (DENSESIAM_HD) to
// be compiled along with it, and so must the lambda itself:
//
//   vectorised([&](auto width) DENSESIAM_INLINE { kernel<width()>(...); });
//
// `width` is the bytes of a vector register of that instruction set, as a compile-time constant.
// Elsewhere than on x86-64 it is 16, and the call a plain one; DENSESIAM_PORTABLE builds that here.
//
// DENSESIAM_CPU_CAPABILITY (baseline, avx2 or avx512), read when the library is loaded, is the best
// that may be used: the others can then be tested on any machine.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#define DENSESIAM_INLINE __attribute__((always_inline))

namespace densesiam {

template <int Bytes>
using Width = std::integral_constant<int, Bytes>;

#if defined(__x86_64__) && !defined(DENSESIAM_PORTABLE)
enum class InstructionSet { baseline, avx2, avx512 };

inline InstructionSet choose_instruction_set() {
  __builtin_cpu_init();
  const char* given = std::getenv("DENSESIAM_CPU_CAPABILITY");
  const auto allows = [&](const char* worse) { return !given || std::strcmp(given, worse) != 0; };
  const bool avx2 = allows("baseline") && __builtin_cpu_supports("avx2") &&
                    __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = allows("avx2") && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return !avx2 ? InstructionSet::baseline : avx512 ? InstructionSet::avx512 : InstructionSet::avx2;
}

// A function-local static would cost a guard in every call.
inline const InstructionSet instruction_set = choose_instruction_set();

template <class Body>
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"), noinline)) void run_avx512(
    const Body& body) {
  body(Width<64>{});
}
template <class Body>
__attribute__((target("arch=x86-64-v3"), noinline)) void run_avx2(const Body& body) {
  body(Width<32>{});
}
template <class Body>
void vectorised(const Body& body) {
  switch (instruction_set) {
    case InstructionSet::avx512:
      return run_avx512(body);
    case InstructionSet::avx2:
      return run_avx2(body);
    case InstructionSet::baseline:
      return body(Width<16>{});
  }
}
#else
template <class Body>
void vectorised(const Body& body) {
  body(Width<16>{});
}
#endif

}  // namespace densesiam
