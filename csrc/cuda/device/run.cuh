// A contiguous run of a tensor that the block copies to shared memory, or from there.
#pragma once

#include "block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

// The tensor starts at a 16-byte boundary. In shared memory the run lies from the same place in a
// pack on, so that both sides are copied in 16-byte packs, wherever the run begins.
template <class T>
struct Run {
  std::int64_t first;  // element of the tensor
  unsigned count;
  T* shared;

  // `memory` is aligned to packs and has room for that many elements.
  __device__ __forceinline__ Run(std::int64_t first_, unsigned count_, T* memory)
      : first(first_), count(count_), shared(memory + unsigned(first_) % kPack<T>) {}
  // Elements that a run of `count` takes in shared memory, whole packs.
  static DENSESIAM_HD std::size_t room(std::size_t count) {
    return (count + 2 * kPack<T> - 2) / kPack<T> * kPack<T>;
  }

  __device__ __forceinline__ void stage(const T* tensor) const {
    const T* source = tensor + first;
    split([&](unsigned i) { shared[i] = load(source + i); },
          [&](unsigned head, unsigned whole) {
            constexpr int together = 4;  // loads of a thread
            const auto* from = reinterpret_cast<const Words*>(source + head) + threadIdx.x;
            auto* to = reinterpret_cast<Words*>(shared + head) + threadIdx.x;
            for (int left = int(whole - threadIdx.x); left > 0; left -= together * kThreads) {
              Words values[together];
#pragma unroll
              for (int k = 0; k < together; ++k) {
                if (k * kThreads < left) values[k] = load_words(from + k * kThreads);
              }
#pragma unroll
              for (int k = 0; k < together; ++k) {
                if (k * kThreads < left) to[k * kThreads] = values[k];
              }
              from += together * kThreads, to += together * kThreads;
            }
          });
  }
  // The other way: what lies there, to the run's place in a tensor.
  __device__ __forceinline__ void unstage(T* tensor) const {
    T* target = tensor + first;
    split([&](unsigned i) { store(target + i, shared[i]); },
          [&](unsigned head, unsigned whole) {
            const auto* from = reinterpret_cast<const Words*>(shared + head);
            auto* to = reinterpret_cast<Words*>(target + head);
            for (unsigned i = threadIdx.x; i < whole; i += kThreads) store_words(to + i, from[i]);
          });
  }

  // Calls packs(head, whole): the run is `head` elements that share their pack with others',
  // `whole` packs, and a tail of such elements; one(i) for those of the head and the tail.
  template <class One, class Packs>
  __device__ __forceinline__ void split(const One& one, const Packs& packs) const {
    const unsigned lead = -unsigned(first) % kPack<T>, head = lead < count ? lead : count;
    const unsigned whole = (count - head) / kPack<T>, tail = head + whole * kPack<T>;
    if (whole * kPack<T> != count) {
      if (threadIdx.x < head) one(threadIdx.x);
      if (tail + threadIdx.x < count) one(tail + threadIdx.x);
    }
    packs(head, whole);
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
