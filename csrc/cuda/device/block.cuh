// What the kernels share: how a launch is cut into blocks, and sums in an order that shape alone
// decides.
#pragma once

#include "launch.h"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

constexpr int kLanes = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kLanes;
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks that fit a multiprocessor's registers at once, at least; float64 takes what it needs.
template <class A>
constexpr int kBlocks = sizeof(A) == 8 ? 1 : 2;

constexpr std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

// Elements of T in a 16-byte pack.
template <class T>
constexpr int kPack = 16 / int(sizeof(T));

// Whether every run of `length` elements of both tensors can be read in 16-byte packs.
template <class T>
bool packs_align(std::uint64_t length, const void* a, const void* b) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  return length * sizeof(T) % 16 == 0 && aligned(a) && aligned(b);
}

// Consecutive values, in packs of at most 16 bytes.
template <int N, class A>
DENSESIAM_HD void store_row(A* target, const A (&values)[N]) {
  constexpr int width = N < kPack<A> ? N : kPack<A>;
#pragma unroll
  for (int first = 0; first < N; first += width) {
    Pack<A, width> pack;
#pragma unroll
    for (int k = 0; k < width; ++k) pack.values[k] = values[first + k];
    store<width>(target + first, pack);
  }
}

template <int N, class A>
DENSESIAM_HD void load_row(const A* source, A (&values)[N]) {
  constexpr int width = N < kPack<A> ? N : kPack<A>;
#pragma unroll
  for (int first = 0; first < N; first += width) {
    const auto pack = load<width>(source + first);
#pragma unroll
    for (int k = 0; k < width; ++k) values[first + k] = pack.values[k];
  }
}

// Neighbouring lanes, a power of two of them, that share their results: each gets the same bits.
struct Lanes {
  unsigned count;

  // Calls step(other), which hands out the value of another lane, until all have been met.
  template <class Step>
  __device__ __forceinline__ void exchange(const Step& step) const {
#pragma unroll 1
    for (unsigned bits = count / 2; bits > 0; bits /= 2) {
      step([=](auto value) { return decltype(value)(__shfl_xor_sync(kAllLanes, value, bits)); });
    }
  }
  // Sum of every value over the lanes.
  template <class... A>
  __device__ __forceinline__ void sum(A&... values) const {
    exchange([&](const auto& other) { ((values += other(values)), ...); });
  }
};

// All values of the block's threads merged, merge(a, b) makes one of two; the same bits in each.
template <class A, class Merge>
__device__ __forceinline__ A block_merge(A value, const Merge& merge) {
  DENSESIAM_SHARED(A, merged, kWarps);
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) {
    value = merge(value, A(__shfl_xor_sync(kAllLanes, value, bits)));
  }
  if (threadIdx.x % kLanes == 0) merged[threadIdx.x / kLanes] = value;
  __syncthreads();
  A all = merged[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) all = merge(all, merged[warp]);
  __syncthreads();  // the next call overwrites them
  return all;
}

// Sum over the block's threads, the same bits in each of them.
template <class A>
__device__ __forceinline__ A block_sum(A value) {
  return block_merge(value, [](A a, A b) { return a + b; });
}

// A vote of the block: cast() before a barrier, any() after it, and a barrier before the next.
struct Vote {
  unsigned* of_warps;  // [kWarps], shared

  __device__ __forceinline__ void cast(bool mine) const {
    const unsigned lanes = __ballot_sync(kAllLanes, mine);
    if (threadIdx.x % kLanes == 0) of_warps[threadIdx.x / kLanes] = lanes;
  }
  __device__ __forceinline__ bool any() const {
    unsigned all = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) all |= of_warps[warp];
    return all != 0;
  }
};

// All lanes of the warp call it; those with a negative cell add nothing.
template <class Count>
__device__ __forceinline__ void add_one(Count* cells, std::int32_t cell) {
  const unsigned same = __match_any_sync(kAllLanes, cell);
  const bool elected = int(threadIdx.x % kLanes) == __ffs(same) - 1;
  if (cell >= 0 && elected) atomicAdd(cells + cell, Count(__popc(same)));
}

constexpr int kStrided = 32;  // 8192 numbers of a block while memory answers once

// The numbers of this thread among kThreads * kStrided from `first` on.
template <class A>
__device__ __forceinline__ void load_strided(const A* values, unsigned first, unsigned count,
                                             A (&some)[kStrided]) {
#pragma unroll
  for (int k = 0; k < kStrided; ++k) {
    const unsigned at = first + threadIdx.x + k * kThreads;
    some[k] = at < count ? load(values + at) : A(0);
  }
}

// Sum of weigh(value) over an array by one block. Loaded: `some` has the first of them.
template <class A, class Weigh>
__device__ __forceinline__ A array_sum(const A* values, unsigned count, A (&some)[kStrided],
                                       bool loaded, const Weigh& weigh) {
  A sum = A(0);
  for (unsigned first = 0; first < count; first += kStrided * kThreads) {
    if (!loaded) load_strided(values, first, count, some);
    loaded = false;
#pragma unroll
    for (int k = 0; k < kStrided; ++k) {
      if (first + threadIdx.x + k * kThreads < count) sum += weigh(some[k]);
    }
  }
  return block_sum(sum);
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
