// overlap_sample: bilinear samples at the cell centres of a box, and the gather that is its
// adjoint.
//
//   out[b, c, i, j] = sum over y, x of share_y(i, y) share_x(j, x) features[b, c, y, x]
//
// where cell i reads two neighbouring rows and cell j two neighbouring columns (csrc/geometry.h).
// Forward gathers by samples, backward by pixels: each input pixel inverts the coordinate function
// to a conservative range of cells, asks the forward's own function for the exact share of each,
// and sums in ascending order. No atomics, so the same bits every time.
//
// Mandatory bytes: forward reads the part of the map under the box and writes B C Kh Kw elements;
// backward reads B C Kh Kw and writes B C H W. About 8 operations an output element: memory bound.
//
// Two thread mappings, one a layout. Planar (NCHW): neighbouring threads on neighbouring outputs of
// one plane, and a loop over kChannels planes that shares the coordinates. Pixels (channels_last):
// one thread on N neighbouring channels of one output, 16 bytes where alignment allows.
//
// C is the type of coordinates, and of the boxes: double where the features are.
#pragma once

#include "../geometry.h"
#include "device/block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

struct OverlapSampleShape {
  unsigned batch, channels;
  int height, width;  // of the map
  int rows, columns;  // of the grid of cells

  DENSESIAM_HD unsigned map() const { return unsigned(height) * unsigned(width); }
  DENSESIAM_HD unsigned cells() const { return unsigned(rows) * unsigned(columns); }
};

constexpr int kChannels = 8;  // planes that share one coordinate computation

template <class C>
DENSESIAM_HD Box4<C> load_box(const C* boxes, unsigned b) {
  const C* box = boxes + 4 * std::int64_t(b);
  return {load(box), load(box + 1), load(box + 2), load(box + 3)};
}

// One block of a planar kernel: some positions of kChannels planes of one image.
struct PlanarBlock {
  unsigned position, first, channels;  // this thread's position; the planes
  std::int64_t plane;                  // index of the first plane in the tensor
  unsigned b;

  __device__ __forceinline__ PlanarBlock(const OverlapSampleShape& shape, unsigned positions) {
    const unsigned tiles = (positions + kThreads - 1) / kThreads;
    const unsigned groups = (shape.channels + kChannels - 1) / kChannels;
    position = blockIdx.x % tiles * kThreads + threadIdx.x;
    first = blockIdx.x / tiles % groups * kChannels;
    b = blockIdx.x / tiles / groups;
    channels = shape.channels - first < kChannels ? shape.channels - first : kChannels;
    plane = std::int64_t(b) * shape.channels + first;
  }

  static std::uint64_t count(const OverlapSampleShape& shape, unsigned positions) {
    return divide_up(positions, kThreads) * divide_up(shape.channels, kChannels) * shape.batch;
  }
};

template <class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_planar(const T* __restrict__ features,  // [B, C, H, W]
                          const C* __restrict__ boxes,     // [B, 4]
                          T* __restrict__ out,             // [B, C, Kh, Kw]
                          OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const PlanarBlock block(shape, shape.cells());
  if (block.position >= shape.cells()) return;
  const int i = int(block.position / unsigned(shape.columns));
  const int j = int(block.position % unsigned(shape.columns));
  const Box4<C> box = load_box(boxes, block.b);
  const Tap<A> y = cell_tap<A>(box.y1, box.y2, i, shape.rows, shape.height);
  const Tap<A> x = cell_tap<A>(box.x1, box.x2, j, shape.columns, shape.width);
  const bool finite = is_finite(box);
  const T* plane = features + block.plane * shape.map();
  const unsigned low = unsigned(y.low) * unsigned(shape.width);
  const unsigned high = unsigned(y.high) * unsigned(shape.width);
  T* target = out + block.plane * shape.cells() + block.position;
#pragma unroll
  for (unsigned c = 0; c < kChannels; ++c) {
    if (c >= block.channels) break;
    const A left =
        mix<A>(to_float(load(plane + low + x.low)), to_float(load(plane + high + x.low)), y.weight);
    const A right = mix<A>(to_float(load(plane + low + x.high)),
                           to_float(load(plane + high + x.high)), y.weight);
    const A value = mix<A>(left, right, x.weight);
    store(target, from_float<T>(finite ? value : A(NAN)));
    plane += shape.map(), target += shape.cells();
  }
}

// One block of a channels_last kernel: each thread has N channels at one position of one image.
template <int N>
struct PixelsBlock {
  unsigned position, channel, b;
  bool inside;

  __device__ __forceinline__ PixelsBlock(const OverlapSampleShape& shape, unsigned positions) {
    const unsigned packs = shape.channels / N;
    const unsigned tiles = (positions * packs + kThreads - 1) / kThreads;
    const unsigned item = blockIdx.x % tiles * kThreads + threadIdx.x;
    b = blockIdx.x / tiles;
    position = item / packs;
    channel = item % packs * N;
    inside = position < positions;
  }

  static std::uint64_t count(const OverlapSampleShape& shape, std::uint64_t positions) {
    return divide_up(positions * (shape.channels / N), kThreads) * shape.batch;
  }
};

template <int N, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_pixels(const T* __restrict__ features,  // [B, C, H, W]
                          const C* __restrict__ boxes,     // [B, 4]
                          T* __restrict__ out,             // [B, C, Kh, Kw]
                          OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const PixelsBlock<N> block(shape, shape.cells());
  if (!block.inside) return;
  const int i = int(block.position / unsigned(shape.columns));
  const int j = int(block.position % unsigned(shape.columns));
  const Box4<C> box = load_box(boxes, block.b);
  const Tap<A> y = cell_tap<A>(box.y1, box.y2, i, shape.rows, shape.height);
  const Tap<A> x = cell_tap<A>(box.x1, box.x2, j, shape.columns, shape.width);
  const bool finite = is_finite(box);
  const T* image = features + std::int64_t(block.b) * shape.map() * shape.channels + block.channel;
  const auto at = [&](int row, int column) {
    return load<N>(image +
                   (unsigned(row) * unsigned(shape.width) + unsigned(column)) * shape.channels);
  };
  const auto low_left = at(y.low, x.low), low_right = at(y.low, x.high);
  const auto high_left = at(y.high, x.low), high_right = at(y.high, x.high);
  Pack<T, N> result;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const A left = mix<A>(to_float(low_left.values[k]), to_float(high_left.values[k]), y.weight);
    const A right = mix<A>(to_float(low_right.values[k]), to_float(high_right.values[k]), y.weight);
    const A value = mix<A>(left, right, x.weight);
    result.values[k] = from_float<T>(finite ? value : A(NAN));
  }
  const std::int64_t cell = std::int64_t(block.b) * shape.cells() + block.position;
  store<N>(out + cell * shape.channels + block.channel, result);
}

// Calls add(i, j, share) for every cell whose sample touches the pixel, in ascending order.
template <class A, class C, class Add>
__device__ __forceinline__ void for_each_touching(const Box4<C>& box, unsigned pixel,
                                                  const OverlapSampleShape& shape, const Add& add) {
  if (!is_finite(box)) return;
  const int y = int(pixel / unsigned(shape.width)), x = int(pixel % unsigned(shape.width));
  const CellRange is = cells_touching(box.y1, box.y2, y, shape.rows, shape.height);
  const CellRange js = cells_touching(box.x1, box.x2, x, shape.columns, shape.width);
  for (int i = is.begin; i < is.end; ++i) {
    const A share_y = tap_share(cell_tap<A>(box.y1, box.y2, i, shape.rows, shape.height), y);
    if (share_y == A(0)) continue;
    for (int j = js.begin; j < js.end; ++j) {
      const A share_x = tap_share(cell_tap<A>(box.x1, box.x2, j, shape.columns, shape.width), x);
      if (share_x != A(0)) add(i, j, share_y * share_x);
    }
  }
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_backward_planar(const T* __restrict__ grad,   // [B, C, Kh, Kw]
                                   const C* __restrict__ boxes,  // [B, 4]
                                   T* __restrict__ out,          // [B, C, H, W]
                                   OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const PlanarBlock block(shape, shape.map());
  if (block.position >= shape.map()) return;
  const T* source = grad + block.plane * shape.cells();
  A sums[kChannels] = {};
  for_each_touching<A>(load_box(boxes, block.b), block.position, shape, [&](int i, int j, A share) {
    const unsigned cell = unsigned(i) * unsigned(shape.columns) + unsigned(j);
#pragma unroll
    for (unsigned c = 0; c < kChannels; ++c) {
      if (c < block.channels) {
        sums[c] += share * to_float(load(source + std::int64_t(c) * shape.cells() + cell));
      }
    }
  });
  T* target = out + block.plane * shape.map() + block.position;
#pragma unroll
  for (unsigned c = 0; c < kChannels; ++c) {
    if (c < block.channels) store(target + std::int64_t(c) * shape.map(), from_float<T>(sums[c]));
  }
}

template <int N, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_backward_pixels(const T* __restrict__ grad,   // [B, C, Kh, Kw]
                                   const C* __restrict__ boxes,  // [B, 4]
                                   T* __restrict__ out,          // [B, C, H, W]
                                   OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const PixelsBlock<N> block(shape, shape.map());
  if (!block.inside) return;
  const T* source = grad + std::int64_t(block.b) * shape.cells() * shape.channels + block.channel;
  A sums[N] = {};
  for_each_touching<A>(load_box(boxes, block.b), block.position, shape, [&](int i, int j, A share) {
    const unsigned cell = unsigned(i) * unsigned(shape.columns) + unsigned(j);
    const auto values = load<N>(source + cell * shape.channels);
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k] += share * to_float(values.values[k]);
  });
  Pack<T, N> result;
#pragma unroll
  for (int k = 0; k < N; ++k) result.values[k] = from_float<T>(sums[k]);
  const std::int64_t pixel = std::int64_t(block.b) * shape.map() + block.position;
  store<N>(out + pixel * shape.channels + block.channel, result);
}

template <class T, class C, class Stream>
void launch_overlap_sample(const T* features, const C* boxes, T* out,
                           const OverlapSampleShape& shape, bool channels_last, Stream stream) {
  const auto run = [&](auto kernel, std::uint64_t blocks) {
    launch(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, features, boxes, out, shape);
  };
  if (!channels_last) {
    run(overlap_sample_planar<T, C>, PlanarBlock::count(shape, shape.cells()));
  } else if (packs_align<T>(shape.channels, features, out)) {
    run(overlap_sample_pixels<kPack<T>, T, C>, PixelsBlock<kPack<T>>::count(shape, shape.cells()));
  } else {
    run(overlap_sample_pixels<1, T, C>, PixelsBlock<1>::count(shape, shape.cells()));
  }
}

template <class T, class C, class Stream>
void launch_overlap_sample_backward(const T* grad, const C* boxes, T* out,
                                    const OverlapSampleShape& shape, bool channels_last,
                                    Stream stream) {
  const auto run = [&](auto kernel, std::uint64_t blocks) {
    launch(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, grad, boxes, out, shape);
  };
  if (!channels_last) {
    run(overlap_sample_backward_planar<T, C>, PlanarBlock::count(shape, shape.map()));
  } else if (packs_align<T>(shape.channels, grad, out)) {
    run(overlap_sample_backward_pixels<kPack<T>, T, C>,
        PixelsBlock<kPack<T>>::count(shape, shape.map()));
  } else {
    run(overlap_sample_backward_pixels<1, T, C>, PixelsBlock<1>::count(shape, shape.map()));
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
