// confusion_matrix: how often each pair of true class and predicted label occurs.
//
//   out[label, prediction] += 1 for every pixel whose label is not ignored and both are in range
//
// A thread reads kPixels neighbouring pixels in 16-byte packs, of any integer type. Lanes of a warp
// that hit the same cell elect one to add for all of them. Blocks count in shared memory where the
// matrix fits, then add it to the result; integer atomics, so the order does not matter.
//
// Mandatory bytes: both inputs once. Pixels without a prediction (`prediction` null) count their
// labels alone.
#pragma once

#include "device/block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

enum class IntegerType { none, uint8, int8, int16, int32, int64 };

struct Integers {
  const void* data;
  IntegerType type;
  std::int64_t limit;   // values in [0, limit) count
  std::int64_t ignore;  // except this one
};

constexpr int kPixels = 16;
constexpr std::size_t kMatrixBytes = 40 << 10;  // of shared memory that a matrix may take

template <int N, class I>
__device__ __forceinline__ void read_as(const Integers& from, std::int64_t first,
                                        std::int64_t count, std::int32_t (&values)[kPixels]) {
  const I* source = static_cast<const I*>(from.data) + first;
#pragma unroll
  for (int start = 0; start < kPixels; start += N) {
    I some[N];
    if (first + start + N <= count) {
      load_row(source + start, some);
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n)
        some[n] = first + start + n < count ? load(source + start + n) : I(-1);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const std::int64_t value = some[n];
      const bool counts =
          first + start + n < count && value >= 0 && value < from.limit && value != from.ignore;
      values[start + n] = counts ? std::int32_t(value) : -1;
    }
  }
}

// kPixels values; -1 in place of those that do not count. Packs: whether 16-byte loads are aligned.
template <bool Packs>
__device__ __forceinline__ void read_integers(const Integers& from, std::int64_t first,
                                              std::int64_t count, std::int32_t (&values)[kPixels]) {
  switch (from.type) {
    case IntegerType::uint8:
      return read_as<Packs ? 16 : 1, std::uint8_t>(from, first, count, values);
    case IntegerType::int8:
      return read_as<Packs ? 16 : 1, std::int8_t>(from, first, count, values);
    case IntegerType::int16:
      return read_as<Packs ? 8 : 1, std::int16_t>(from, first, count, values);
    case IntegerType::int32:
      return read_as<Packs ? 4 : 1, std::int32_t>(from, first, count, values);
    case IntegerType::int64:
      return read_as<Packs ? 2 : 1, std::int64_t>(from, first, count, values);
    case IntegerType::none:
#pragma unroll
      for (int n = 0; n < kPixels; ++n) values[n] = 0;
  }
}

template <bool Packs, bool Shared>
__global__ void __launch_bounds__(kThreads, 2)
    count_pairs(Integers prediction,                                      // [count]
                Integers label,                                           // [count]
                std::int64_t count, unsigned long long* __restrict__ out  // [classes, predictions]
    ) {
  DENSESIAM_DYNAMIC_SHARED(unsigned, matrix);
  const int columns = int(prediction.limit);
  const int cells = int(label.limit) * columns;
  if constexpr (Shared) {
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) matrix[cell] = 0;
    __syncthreads();
  }
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads * kPixels;
  // Whole warps stay or leave: add_one needs all lanes.
  const std::int64_t warp =
      (std::int64_t(blockIdx.x) * kThreads + threadIdx.x / kLanes * kLanes) * kPixels;
  for (std::int64_t start = warp; start < count; start += step) {
    const std::int64_t first = start + threadIdx.x % kLanes * kPixels;
    std::int32_t predictions[kPixels], labels[kPixels];
    read_integers<Packs>(prediction, first, count, predictions);
    read_integers<Packs>(label, first, count, labels);
#pragma unroll
    for (int n = 0; n < kPixels; ++n) {
      const bool counts = labels[n] >= 0 && predictions[n] >= 0;
      const std::int32_t cell = counts ? labels[n] * columns + predictions[n] : -1;
      if constexpr (Shared) {
        add_one(matrix, cell);
      } else {
        add_one(out, cell);
      }
    }
  }
  if constexpr (Shared) {
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) {
      if (matrix[cell] != 0) {
        atomicAdd(out + cell, static_cast<unsigned long long>(matrix[cell]));
      }
    }
  }
}

// `out` (label.limit, prediction.limit) holds zeros before.
template <class Stream>
void launch_count_pairs(const Integers& prediction, const Integers& label, std::int64_t count,
                        std::int64_t* out, Stream stream) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  const bool packs = aligned(prediction.data) && aligned(label.data);
  const std::size_t bytes = std::size_t(prediction.limit) * label.limit * sizeof(unsigned);
  const bool shared = bytes <= kMatrixBytes;
  // Few enough that adding their matrices up costs little, enough to fill any GPU.
  const std::uint64_t wanted = divide_up(count, kThreads * kPixels);
  const unsigned blocks = unsigned(wanted < 1024 ? wanted : 1024);
  const auto run = [&](auto kernel) {
    launch(kernel, dim3(blocks), dim3(kThreads), shared ? bytes : 0, stream, prediction, label,
           count, reinterpret_cast<unsigned long long*>(out));
  };
  if (shared) {
    packs ? run(count_pairs<true, true>) : run(count_pairs<false, true>);
  } else {
    packs ? run(count_pairs<true, false>) : run(count_pairs<false, false>);
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
