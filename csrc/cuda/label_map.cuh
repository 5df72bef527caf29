// label_map: the class of greatest logit at every pixel of a resized map.
//
//   out[b, i, j] = argmax over k of bilinear(logits[b, k], i, j)
//
// Planar maps: neighbouring threads on neighbouring columns, kRows output rows each; rows that lie
// between the same two input rows share their loads. Pixels-layout maps: one thread an output,
// N classes at a time. The resized logits exist in registers alone.
//
// Mandatory bytes: B K h w elements read, 8 B H W written. 6 operations a class and output: bound
// by the first-level cache where the map grows, by memory where it shrinks.
#pragma once

#include "../geometry.h"
#include "device/argmax.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

struct LabelMapShape {
  unsigned batch, classes;
  int height, width;  // of the logits
  int rows, columns;  // of the result
};

constexpr int kRows = 4;

// So that the rows of double find room in registers.
template <class A>
constexpr int kLabelBlocks = sizeof(A) == 8 ? 2 : 3;

template <class T>
__global__ void __launch_bounds__(kThreads, kLabelBlocks<Accumulate<T>>)
    label_map_planar(const T* __restrict__ logits,    // [B, K, h, w]
                     std::int64_t* __restrict__ out,  // [B, H, W]
                     LabelMapShape shape) {
  using A = Accumulate<T>;
  const unsigned columns = unsigned(shape.columns);
  const unsigned groups = unsigned(shape.rows + kRows - 1) / kRows;
  const unsigned tiles = (groups * columns + kThreads - 1) / kThreads;
  const unsigned item = blockIdx.x % tiles * kThreads + threadIdx.x;
  const unsigned b = blockIdx.x / tiles;
  if (item >= groups * columns) return;
  const int first = int(item / columns) * kRows, column = int(item % columns);
  const Tap<A> x = cell_tap<A>(A(0), A(1), column, shape.columns, shape.width);
  Tap<A> y[kRows];
  Greatest<A> best[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r < shape.rows ? first + r : shape.rows - 1;
    y[r] = cell_tap<A>(A(0), A(1), row, shape.rows, shape.height);
    best[r] = Greatest<A>::starting(0);
  }
  const std::int64_t map = std::int64_t(shape.height) * shape.width;
  const T* plane = logits + std::int64_t(b) * shape.classes * map;
  const auto along = [&](int row) {
    const A left = to_float(load(plane + row * shape.width + x.low));
    const A right = to_float(load(plane + row * shape.width + x.high));
    return mix(left, right, x.weight);
  };
  for (unsigned k = 0; k < shape.classes; ++k, plane += map) {
    A low = A(0), high = A(0);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r == 0 || y[r].low != y[r - 1].low || y[r].high != y[r - 1].high) {
        low = along(y[r].low), high = along(y[r].high);
      }
      best[r].offer_next(mix(low, high, y[r].weight), int(k));
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (first + r >= shape.rows) break;
    store(out + (std::int64_t(b) * shape.rows + first + r) * columns + column,
          std::int64_t(best[r].index));
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    label_map_pixels(const T* __restrict__ logits,    // [B, K, h, w]
                     std::int64_t* __restrict__ out,  // [B, H, W]
                     LabelMapShape shape) {
  using A = Accumulate<T>;
  const unsigned cells = unsigned(shape.rows) * unsigned(shape.columns);
  const unsigned tiles = (cells + kThreads - 1) / kThreads;
  const unsigned cell = blockIdx.x % tiles * kThreads + threadIdx.x;
  const unsigned b = blockIdx.x / tiles;
  if (cell >= cells) return;
  const int i = int(cell / unsigned(shape.columns)), j = int(cell % unsigned(shape.columns));
  const Tap<A> y = cell_tap<A>(A(0), A(1), i, shape.rows, shape.height);
  const Tap<A> x = cell_tap<A>(A(0), A(1), j, shape.columns, shape.width);
  const T* image = logits + std::int64_t(b) * shape.height * shape.width * shape.classes;
  const auto at = [&](int row, int column) {
    return image + unsigned(row * shape.width + column) * shape.classes;
  };
  const T *low_left = at(y.low, x.low), *low_right = at(y.low, x.high);
  const T *high_left = at(y.high, x.low), *high_right = at(y.high, x.high);
  Greatest<A> best = Greatest<A>::starting(0);
  for (unsigned k = 0; k < shape.classes; k += N) {
    const auto a = load<N>(low_left + k), b = load<N>(low_right + k);
    const auto c = load<N>(high_left + k), d = load<N>(high_right + k);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const A low = mix<A>(to_float(a.values[n]), to_float(b.values[n]), x.weight);
      const A high = mix<A>(to_float(c.values[n]), to_float(d.values[n]), x.weight);
      best.offer_next(mix(low, high, y.weight), int(k) + n);
    }
  }
  store(out + std::int64_t(b) * cells + cell, std::int64_t(best.index));
}

template <class T, class Stream>
void launch_label_map(const T* logits, std::int64_t* out, const LabelMapShape& shape,
                      bool channels_last, Stream stream) {
  const std::uint64_t groups = divide_up(shape.rows, kRows);
  const std::uint64_t items = (channels_last ? shape.rows : groups) * shape.columns;
  const unsigned blocks = unsigned(divide_up(items, kThreads) * shape.batch);
  const auto run = [&](auto kernel) {
    launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, logits, out, shape);
  };
  if (!channels_last) {
    run(label_map_planar<T>);
  } else if (packs_align<T>(shape.classes, logits, logits)) {
    run(label_map_pixels<kPack<T>, T>);
  } else {
    run(label_map_pixels<1, T>);
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
