// Numbers of 16 bits as they are: copied to shared memory past the registers, and multiplied by
// tensor cores two in a word.
#pragma once

#include "block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

// Starts to copy 16 bytes from global to shared memory. They are there when this thread has waited
// for its copies, and for others after a barrier behind that.
__device__ __forceinline__ void start_copy(Words* to, const Words* from) {
#ifdef DENSESIAM_EMULATOR
  ::emulator::machine().start_copy(to, from, EMULATOR_SITE);
#else
  const auto shared = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :
               : "r"(shared), "l"(from)
               : "memory");
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#ifdef DENSESIAM_EMULATOR
  ::emulator::machine().wait_for_copies();
#else
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

// Two numbers of a half type.
using HalfWord = std::uint32_t;

template <class T>
__device__ __forceinline__ void unpack(HalfWord word, float (&two)[2]) {
  T halves[2];
  std::memcpy(halves, &word, sizeof(word));
  two[0] = to_float(halves[0]);
  two[1] = to_float(halves[1]);
}
// Rounded, in one instruction.
template <class T>
__device__ __forceinline__ HalfWord packed(float first, float second) {
  HalfWord word;
#ifdef DENSESIAM_EMULATOR
  const T halves[2] = {from_float<T>(first), from_float<T>(second)};
#else
  const auto halves = [&] {
    if constexpr (std::is_same_v<T, half>) return __floats2half2_rn(first, second);
    if constexpr (!std::is_same_v<T, half>) return __floats2bfloat162_rn(first, second);
  }();
#endif
  std::memcpy(&word, &halves, sizeof(word));
  return word;
}

// c += a b on a warp, a 16 x 16, b 16 x 8, of 16-bit numbers, two in a word. Lane l = 4 g + t holds
// a[g], a[g + 8] at columns 2 t, 2 t + 1 and then at those 8 further on; b[2 t], b[2 t + 1] and
// then b[2 t + 8], b[2 t + 9] at column g; c[g], c[g + 8] at columns
// 2 t, 2 t + 1.
template <class T>
__device__ __forceinline__ void multiply_halves(float (&c)[4], const HalfWord (&a)[4],
                                                const HalfWord (&b)[2]) {
#ifdef DENSESIAM_EMULATOR
  const auto number = [](std::uint16_t bits) { return to_float(T{bits}); };
  ::emulator::multiply_16x8x16(c, a, b, number, EMULATOR_SITE);
#else
#define DENSESIAM_MULTIPLY(type)                                        \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type            \
      ".f32 "                                                           \
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, half>) DENSESIAM_MULTIPLY("f16");
  if constexpr (!std::is_same_v<T, half>) DENSESIAM_MULTIPLY("bf16");
#undef DENSESIAM_MULTIPLY
#endif
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory, of which lane 8 m + r has the address
// of row r of matrix m. Lane 4 g + t gets a word of each: of row g, columns 2 t and 2 t + 1; of the
// transposed matrix where Transposed.
template <bool Transposed, class T>
__device__ __forceinline__ void load_matrices(HalfWord (&words)[4], const T* row) {
#ifdef DENSESIAM_EMULATOR
  ::emulator::load_matrices(words, row, Transposed, EMULATOR_SITE);
#else
  const auto at = unsigned(__cvta_generic_to_shared(row));
#define DENSESIAM_LOAD(form)                                                              \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" form ".shared.b16 {%0, %1, %2, %3}, [%4];" \
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])           \
               : "r"(at)                                                                  \
               : "memory")
  if constexpr (Transposed) DENSESIAM_LOAD(".trans");
  if constexpr (!Transposed) DENSESIAM_LOAD("");
#undef DENSESIAM_LOAD
#endif
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
