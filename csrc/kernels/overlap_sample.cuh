// overlap_sample: bilinear samples at the cell centres of a box, and the gather that is its
// adjoint.
//
//   out[b, c, i, j] = sum over y, x of share_y(i, y) share_x(j, x) features[b, c, y, x]
//
// where cell i reads two neighbouring rows and cell j two neighbouring columns (common/geometry.h).
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
#pragma once

#include "../common/geometry.h"
#include "../common/launch.h"

namespace densesiam {

template <class Index>
struct OverlapSampleShape {
  Index batch, channels;
  int height, width;  // of the map
  int rows, columns;  // of the grid of cells
};

constexpr int kThreads = 256;
constexpr int kChannels = 8;  // planes that share one coordinate computation

template <class C, class Box>
DENSESIAM_HD Box4<C> load_box(const Box* box) {
  return {C(load(box)), C(load(box + 1)), C(load(box + 2)), C(load(box + 3))};
}

template <class A>
DENSESIAM_HD A mix(A low, A high, A weight) {
  return low + weight * (high - low);
}

// blockIdx.x: outputs of a plane; y: groups of kChannels planes; z (strided): images.
template <class T, class Box, class Index>
__global__ void __launch_bounds__(kThreads)
    overlap_sample_planar(const T* __restrict__ features, const Box* __restrict__ boxes,
                          T* __restrict__ out, OverlapSampleShape<Index> shape) {
  using A = Accumulate<T>;
  using C = Coordinate<T, Box>;
  const int output = int(blockIdx.x * kThreads + threadIdx.x);
  if (output >= shape.rows * shape.columns) return;
  const int i = output / shape.columns, j = output % shape.columns;
  const Index first = Index(blockIdx.y) * kChannels;
  const int channels = int(shape.channels - first < kChannels ? shape.channels - first : kChannels);
  const Index map = Index(shape.height) * shape.width;
  const Index cells = Index(shape.rows) * shape.columns;
  for (Index b = blockIdx.z; b < shape.batch; b += gridDim.z) {
    const Box4<C> box = load_box<C>(boxes + 4 * b);
    const Tap<C> y = cell_tap(box.y1, box.y2, i, shape.rows, shape.height);
    const Tap<C> x = cell_tap(box.x1, box.x2, j, shape.columns, shape.width);
    const bool finite = is_finite(box);
    const Index plane = b * shape.channels + first;
    const T* low = features + plane * map + Index(y.low) * shape.width;
    const T* high = features + plane * map + Index(y.high) * shape.width;
    T* target = out + plane * cells + output;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c >= channels) break;
      const A left = mix<A>(to_float(load(low + x.low)), to_float(load(high + x.low)), A(y.weight));
      const A right =
          mix<A>(to_float(load(low + x.high)), to_float(load(high + x.high)), A(y.weight));
      const A value = mix<A>(left, right, A(x.weight));
      store(target, from_float<T>(finite ? value : A(NAN)));
      low += map, high += map, target += cells;
    }
  }
}

// One thread: N channels of one cell. blockIdx.x (strided) over all of them.
template <int N, class T, class Box, class Index>
__global__ void __launch_bounds__(kThreads)
    overlap_sample_pixels(const T* __restrict__ features, const Box* __restrict__ boxes,
                          T* __restrict__ out, OverlapSampleShape<Index> shape) {
  using A = Accumulate<T>;
  using C = Coordinate<T, Box>;
  const Index packs = shape.channels / N;
  const Index total = shape.batch * shape.rows * shape.columns * packs;
  const Index step = Index(gridDim.x) * kThreads;
  for (Index item = Index(blockIdx.x) * kThreads + threadIdx.x; item < total; item += step) {
    const Index c = item % packs * N;
    const Index cell = item / packs;
    const int j = int(cell % shape.columns);
    const Index row = cell / shape.columns;
    const int i = int(row % shape.rows);
    const Index b = row / shape.rows;
    const Box4<C> box = load_box<C>(boxes + 4 * b);
    const Tap<C> y = cell_tap(box.y1, box.y2, i, shape.rows, shape.height);
    const Tap<C> x = cell_tap(box.x1, box.x2, j, shape.columns, shape.width);
    const bool finite = is_finite(box);
    const T* low = features + ((b * shape.height + y.low) * shape.width) * shape.channels + c;
    const T* high = features + ((b * shape.height + y.high) * shape.width) * shape.channels + c;
    const auto low_left = load<N>(low + x.low * shape.channels);
    const auto low_right = load<N>(low + x.high * shape.channels);
    const auto high_left = load<N>(high + x.low * shape.channels);
    const auto high_right = load<N>(high + x.high * shape.channels);
    Pack<T, N> result;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A left =
          mix<A>(to_float(low_left.values[k]), to_float(high_left.values[k]), A(y.weight));
      const A right =
          mix<A>(to_float(low_right.values[k]), to_float(high_right.values[k]), A(y.weight));
      const A value = mix<A>(left, right, A(x.weight));
      result.values[k] = from_float<T>(finite ? value : A(NAN));
    }
    store<N>(out + cell * shape.channels + c, result);
  }
}

// blockIdx.x: pixels of a plane; y: groups of kChannels planes; z (strided): images.
template <class T, class Box, class Index>
__global__ void __launch_bounds__(kThreads)
    overlap_sample_backward_planar(const T* __restrict__ grad, const Box* __restrict__ boxes,
                                   T* __restrict__ out, OverlapSampleShape<Index> shape) {
  using A = Accumulate<T>;
  using C = Coordinate<T, Box>;
  const Index pixel = Index(blockIdx.x) * kThreads + threadIdx.x;
  const Index map = Index(shape.height) * shape.width;
  if (pixel >= map) return;
  const int py = int(pixel / shape.width), px = int(pixel % shape.width);
  const Index first = Index(blockIdx.y) * kChannels;
  const int channels = int(shape.channels - first < kChannels ? shape.channels - first : kChannels);
  const Index cells = Index(shape.rows) * shape.columns;
  for (Index b = blockIdx.z; b < shape.batch; b += gridDim.z) {
    const Box4<C> box = load_box<C>(boxes + 4 * b);
    const Index plane = b * shape.channels + first;
    A sums[kChannels] = {};
    if (is_finite(box)) {
      const CellRange ys = cells_touching(box.y1, box.y2, py, shape.rows, shape.height);
      const CellRange xs = cells_touching(box.x1, box.x2, px, shape.columns, shape.width);
      for (int i = ys.begin; i < ys.end; ++i) {
        const A share_y = A(tap_share(cell_tap(box.y1, box.y2, i, shape.rows, shape.height), py));
        if (share_y == A(0)) continue;
        for (int j = xs.begin; j < xs.end; ++j) {
          const A share =
              share_y * A(tap_share(cell_tap(box.x1, box.x2, j, shape.columns, shape.width), px));
          if (share == A(0)) continue;
          const T* source = grad + plane * cells + Index(i) * shape.columns + j;
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            if (c < channels) sums[c] += share * to_float(load(source + c * cells));
          }
        }
      }
    }
    T* target = out + plane * map + pixel;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < channels) store(target + c * map, from_float<T>(sums[c]));
    }
  }
}

// One thread: N channels of one input pixel. blockIdx.x (strided) over all of them.
template <int N, class T, class Box, class Index>
__global__ void __launch_bounds__(kThreads)
    overlap_sample_backward_pixels(const T* __restrict__ grad, const Box* __restrict__ boxes,
                                   T* __restrict__ out, OverlapSampleShape<Index> shape) {
  using A = Accumulate<T>;
  using C = Coordinate<T, Box>;
  const Index packs = shape.channels / N;
  const Index total = shape.batch * shape.height * shape.width * packs;
  const Index step = Index(gridDim.x) * kThreads;
  for (Index item = Index(blockIdx.x) * kThreads + threadIdx.x; item < total; item += step) {
    const Index c = item % packs * N;
    const Index pixel = item / packs;
    const int px = int(pixel % shape.width);
    const Index row = pixel / shape.width;
    const int py = int(row % shape.height);
    const Index b = row / shape.height;
    const Box4<C> box = load_box<C>(boxes + 4 * b);
    A sums[N] = {};
    if (is_finite(box)) {
      const CellRange ys = cells_touching(box.y1, box.y2, py, shape.rows, shape.height);
      const CellRange xs = cells_touching(box.x1, box.x2, px, shape.columns, shape.width);
      for (int i = ys.begin; i < ys.end; ++i) {
        const A share_y = A(tap_share(cell_tap(box.y1, box.y2, i, shape.rows, shape.height), py));
        if (share_y == A(0)) continue;
        for (int j = xs.begin; j < xs.end; ++j) {
          const A share =
              share_y * A(tap_share(cell_tap(box.x1, box.x2, j, shape.columns, shape.width), px));
          if (share == A(0)) continue;
          const auto source =
              load<N>(grad + ((b * shape.rows + i) * shape.columns + j) * shape.channels + c);
#pragma unroll
          for (int k = 0; k < N; ++k) sums[k] += share * to_float(source.values[k]);
        }
      }
    }
    Pack<T, N> result;
#pragma unroll
    for (int k = 0; k < N; ++k) result.values[k] = from_float<T>(sums[k]);
    store<N>(out + pixel * shape.channels + c, result);
  }
}

// Blocks of a planar kernel: outputs of a plane, groups of planes, images.
template <class Index>
dim3 planar_grid(const OverlapSampleShape<Index>& shape, std::uint64_t plane) {
  return dim3(unsigned((plane + kThreads - 1) / kThreads),
              unsigned((shape.channels + kChannels - 1) / kChannels),
              unsigned(shape.batch < 65535 ? shape.batch : 65535));
}

// Blocks of a strided loop over that many items.
inline dim3 strided_grid(std::uint64_t items) {
  const std::uint64_t most = (1ull << 31) - 1;
  const std::uint64_t wanted = (items + kThreads - 1) / kThreads;
  return dim3(unsigned(wanted < most ? wanted : most));
}

// Whether 16-byte packs of channels are aligned in every pixel of both tensors.
template <class T>
bool packs_align(std::uint64_t channels, const void* a, const void* b) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  return channels * sizeof(T) % 16 == 0 && aligned(a) && aligned(b);
}

template <class T, class Box, class Index, class Stream>
void launch_overlap_sample(const T* features, const Box* boxes, T* out,
                           OverlapSampleShape<Index> shape, bool channels_last, Stream stream) {
  constexpr int pack = 16 / int(sizeof(T));
  const std::uint64_t cells = std::uint64_t(shape.rows) * shape.columns;
  const std::uint64_t items = cells * shape.batch * shape.channels;
  if (!channels_last) {
    launch(overlap_sample_planar<T, Box, Index>, planar_grid(shape, cells), dim3(kThreads), 0,
           stream, features, boxes, out, shape);
  } else if (packs_align<T>(shape.channels, features, out)) {
    launch(overlap_sample_pixels<pack, T, Box, Index>, strided_grid(items / pack), dim3(kThreads),
           0, stream, features, boxes, out, shape);
  } else {
    launch(overlap_sample_pixels<1, T, Box, Index>, strided_grid(items), dim3(kThreads), 0, stream,
           features, boxes, out, shape);
  }
}

template <class T, class Box, class Index, class Stream>
void launch_overlap_sample_backward(const T* grad, const Box* boxes, T* out,
                                    OverlapSampleShape<Index> shape, bool channels_last,
                                    Stream stream) {
  constexpr int pack = 16 / int(sizeof(T));
  const std::uint64_t map = std::uint64_t(shape.height) * shape.width;
  const std::uint64_t items = map * shape.batch * shape.channels;
  if (!channels_last) {
    launch(overlap_sample_backward_planar<T, Box, Index>, planar_grid(shape, map), dim3(kThreads),
           0, stream, grad, boxes, out, shape);
  } else if (packs_align<T>(shape.channels, grad, out)) {
    launch(overlap_sample_backward_pixels<pack, T, Box, Index>, strided_grid(items / pack),
           dim3(kThreads), 0, stream, grad, boxes, out, shape);
  } else {
    launch(overlap_sample_backward_pixels<1, T, Box, Index>, strided_grid(items), dim3(kThreads), 0,
           stream, grad, boxes, out, shape);
  }
}

}  // namespace densesiam
