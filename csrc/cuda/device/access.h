// Global memory goes through these helpers and nothing else: packs of N neighbouring elements,
// which nvcc turns into one load or store of N * sizeof(T) bytes when that is 16 or less. The CPU
// emulator of the CUDA kernels counts and checks accesses here.
#pragma once

#include "../../numeric.h"

#ifndef DENSESIAM_ON_LOAD  // the emulator defines both before including any kernel
#define DENSESIAM_ON_LOAD(pointer, bytes)
#define DENSESIAM_ON_STORE(pointer, bytes)
#endif

// Device code lives in this inline namespace: nvcc's and the emulator's symbols must not be one.
#ifdef __CUDACC__
#define DENSESIAM_TARGET device
#else
#define DENSESIAM_TARGET emulated
#endif

namespace densesiam {
inline namespace DENSESIAM_TARGET {

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

template <int N, class T>
DENSESIAM_HD Pack<T, N> load(const T* pointer) {
  DENSESIAM_ON_LOAD(pointer, sizeof(T) * N);
  return *reinterpret_cast<const Pack<T, N>*>(pointer);
}

template <class T>
DENSESIAM_HD T load(const T* pointer) {
  DENSESIAM_ON_LOAD(pointer, sizeof(T));
  return *pointer;
}

template <int N, class T>
DENSESIAM_HD void store(T* pointer, const Pack<T, N>& pack) {
  DENSESIAM_ON_STORE(pointer, sizeof(T) * N);
  *reinterpret_cast<Pack<T, N>*>(pointer) = pack;
}

template <class T>
DENSESIAM_HD void store(T* pointer, T value) {
  DENSESIAM_ON_STORE(pointer, sizeof(T));
  *pointer = value;
}

// 16 bytes, whatever they hold.
using Words = Pack<std::uint32_t, 4>;

DENSESIAM_HD Words load_words(const Words* pointer) {
  return load<4>(reinterpret_cast<const std::uint32_t*>(pointer));
}
DENSESIAM_HD void store_words(Words* pointer, const Words& words) {
  store<4>(reinterpret_cast<std::uint32_t*>(pointer), words);
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
