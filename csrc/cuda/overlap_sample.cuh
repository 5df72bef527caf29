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
// one plane, then on those of the next kChannels planes, so that small maps fill a block too; each
// goes through its planes with the same coordinates. Pixels (channels_last): one thread on N
// neighbouring channels of one output, 16 bytes where alignment allows.
//
// The grid is separable: a block of the backward first writes the taps of all rows and columns of
// cells, and the cells that touch each row and column of pixels, to its shared memory. Where they
// do not fit or do not pay they are found anew for each pixel.
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

// One thread of a planar kernel: one position of at most kChannels planes of one image.
struct PlanarItem {
  unsigned position, channels;  // the position; planes, 0 for a thread beyond the image
  std::int64_t plane;           // index of the first plane in the tensor
  unsigned b;

  __device__ __forceinline__ PlanarItem(const OverlapSampleShape& shape, unsigned positions) {
    const unsigned groups = (shape.channels + kChannels - 1) / kChannels;
    const unsigned blocks = (positions * groups + kThreads - 1) / kThreads;
    const unsigned item = blockIdx.x % blocks * kThreads + threadIdx.x;
    const unsigned first = item / positions * kChannels;
    position = item % positions;
    b = blockIdx.x / blocks;
    const unsigned left = first < shape.channels ? shape.channels - first : 0;
    channels = left < kChannels ? left : kChannels;
    plane = std::int64_t(b) * shape.channels + first;
  }

  static std::uint64_t count(const OverlapSampleShape& shape, std::uint64_t positions) {
    return divide_up(positions * divide_up(shape.channels, kChannels), kThreads) * shape.batch;
  }
};

template <class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_planar(const T* __restrict__ features,  // [B, C, H, W]
                          const C* __restrict__ boxes,     // [B, 4]
                          T* __restrict__ out,             // [B, C, Kh, Kw]
                          OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const PlanarItem item(shape, shape.cells());
  if (item.channels == 0) return;
  const int i = int(item.position / unsigned(shape.columns));
  const int j = int(item.position % unsigned(shape.columns));
  const Box4<C> box = load_box(boxes, item.b);
  const Tap<A> y = cell_tap<A>(box.y1, box.y2, i, shape.rows, shape.height);
  const Tap<A> x = cell_tap<A>(box.x1, box.x2, j, shape.columns, shape.width);
  const bool finite = is_finite(box);
  const T* plane = features + item.plane * shape.map();
  const unsigned low = unsigned(y.low) * unsigned(shape.width);
  const unsigned high = unsigned(y.high) * unsigned(shape.width);
  T* target = out + item.plane * shape.cells() + item.position;
#pragma unroll
  for (unsigned c = 0; c < kChannels; ++c) {
    if (c >= item.channels) break;
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

// The taps of a grid, and the cells that touch a row or column of pixels, found where they are
// asked for.
template <class A, class C>
struct FoundTaps {
  static constexpr bool kExact = false;  // ranges hold cells that do not touch
  Box4<C> box;
  OverlapSampleShape shape;

  static std::size_t bytes(const OverlapSampleShape&) { return 0; }
  __device__ __forceinline__ FoundTaps(const Box4<C>& box_, const OverlapSampleShape& shape_)
      : box(box_), shape(shape_) {}
  __device__ __forceinline__ CellRange rows_at(int y) const {
    if (!is_finite(box)) return {0, 0};
    return cells_touching(box.y1, box.y2, y, shape.rows, shape.height);
  }
  __device__ __forceinline__ CellRange columns_at(int x) const {
    return cells_touching(box.x1, box.x2, x, shape.columns, shape.width);
  }
  __device__ __forceinline__ Tap<A> row(int i) const {
    return cell_tap<A>(box.y1, box.y2, i, shape.rows, shape.height);
  }
  __device__ __forceinline__ Tap<A> column(int j) const {
    return cell_tap<A>(box.x1, box.x2, j, shape.columns, shape.width);
  }
};

// The same, once for a block in its shared memory. All threads of the block make it together.
// Coordinates never fall from one cell to the next, or never rise, as no rounding changes an order:
// the cells that touch a pixel are neighbours, and a range that ends in such cells has no others.
template <class A, class C>
struct SharedTaps {
  static constexpr bool kExact = true;
  Tap<A>* row_taps;          // [Kh]
  Tap<A>* column_taps;       // [Kw]
  CellRange* row_ranges;     // [H]
  CellRange* column_ranges;  // [W]

  static std::size_t bytes(const OverlapSampleShape& shape) {
    return (std::size_t(shape.rows) + std::size_t(shape.columns)) * sizeof(Tap<A>) +
           (std::size_t(shape.height) + std::size_t(shape.width)) * sizeof(CellRange);
  }
  __device__ __forceinline__ SharedTaps(const Box4<C>& box, const OverlapSampleShape& shape) {
    DENSESIAM_DYNAMIC_SHARED(Tap<A>, memory);
    row_taps = memory, column_taps = row_taps + shape.rows;
    row_ranges = reinterpret_cast<CellRange*>(column_taps + shape.columns);
    column_ranges = row_ranges + shape.height;
    const FoundTaps<A, C> found(box, shape);
    for (int i = int(threadIdx.x); i < shape.rows; i += kThreads) row_taps[i] = found.row(i);
    for (int j = int(threadIdx.x); j < shape.columns; j += kThreads) {
      column_taps[j] = found.column(j);
    }
    __syncthreads();
    for (int y = int(threadIdx.x); y < shape.height; y += kThreads) {
      row_ranges[y] = exact(found.rows_at(y), row_taps, y);
    }
    for (int x = int(threadIdx.x); x < shape.width; x += kThreads) {
      column_ranges[x] = exact(found.columns_at(x), column_taps, x);
    }
    __syncthreads();
  }
  static __device__ __forceinline__ CellRange exact(CellRange range, const Tap<A>* taps,
                                                    int pixel) {
    while (range.begin < range.end && tap_share(taps[range.begin], pixel) == A(0)) ++range.begin;
    while (range.begin < range.end && tap_share(taps[range.end - 1], pixel) == A(0)) --range.end;
    return range;
  }
  __device__ __forceinline__ CellRange rows_at(int y) const { return row_ranges[y]; }
  __device__ __forceinline__ CellRange columns_at(int x) const { return column_ranges[x]; }
  __device__ __forceinline__ Tap<A> row(int i) const { return row_taps[i]; }
  __device__ __forceinline__ Tap<A> column(int j) const { return column_taps[j]; }
};

// Calls add(cell, share) for every cell whose sample touches the pixel, in ascending order.
template <class A, class Taps, class Add>
__device__ __forceinline__ void for_each_touching(const Taps& taps, unsigned pixel,
                                                  const OverlapSampleShape& shape, const Add& add) {
  const int y = int(pixel / unsigned(shape.width)), x = int(pixel % unsigned(shape.width));
  const CellRange is = taps.rows_at(y), js = taps.columns_at(x);
  for (int i = is.begin; i < is.end; ++i) {
    const A share_y = tap_share(taps.row(i), y);
    if (!Taps::kExact && share_y == A(0)) continue;
    for (int j = js.begin; j < js.end; ++j) {
      const A share_x = tap_share(taps.column(j), x);
      if (Taps::kExact || share_x != A(0))
        add(unsigned(i) * unsigned(shape.columns) + unsigned(j), share_y * share_x);
    }
  }
}

template <template <class, class> class Taps, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_backward_planar(const T* __restrict__ grad,   // [B, C, Kh, Kw]
                                   const C* __restrict__ boxes,  // [B, 4]
                                   T* __restrict__ out,          // [B, C, H, W]
                                   OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const PlanarItem item(shape, shape.map());
  const Taps<A, C> taps(load_box(boxes, item.b), shape);
  if (item.channels == 0) return;
  const T* source = grad + item.plane * shape.cells();
  T* target = out + item.plane * shape.map() + item.position;
  const auto gather = [&](auto whole) {
    const auto counts = [&](unsigned c) { return decltype(whole)::value || c < item.channels; };
    A sums[kChannels] = {};
    for_each_touching<A>(taps, item.position, shape, [&](unsigned cell, A share) {
      const T* at = source + cell;
#pragma unroll
      for (unsigned c = 0; c < kChannels; ++c) {
        if (counts(c)) sums[c] += share * to_float(load(at + c * shape.cells()));
      }
    });
#pragma unroll
    for (unsigned c = 0; c < kChannels; ++c) {
      if (counts(c)) store(target + c * shape.map(), from_float<T>(sums[c]));
    }
  };
  item.channels == kChannels ? gather(std::true_type{}) : gather(std::false_type{});
}

template <template <class, class> class Taps, int N, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_backward_pixels(const T* __restrict__ grad,   // [B, C, Kh, Kw]
                                   const C* __restrict__ boxes,  // [B, 4]
                                   T* __restrict__ out,          // [B, C, H, W]
                                   OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const PixelsBlock<N> block(shape, shape.map());
  const Taps<A, C> taps(load_box(boxes, block.b), shape);
  if (!block.inside) return;
  const T* source = grad + std::int64_t(block.b) * shape.cells() * shape.channels + block.channel;
  A sums[N] = {};
  for_each_touching<A>(taps, block.position, shape, [&](unsigned cell, A share) {
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
    run(overlap_sample_planar<T, C>, PlanarItem::count(shape, shape.cells()));
  } else if (packs_align<T>(shape.channels, features, out)) {
    run(overlap_sample_pixels<kPack<T>, T, C>, PixelsBlock<kPack<T>>::count(shape, shape.cells()));
  } else {
    run(overlap_sample_pixels<1, T, C>, PixelsBlock<1>::count(shape, shape.cells()));
  }
}

template <template <class, class> class Taps, class T, class C, class Stream>
void launch_overlap_sample_backward_with(const T* grad, const C* boxes, T* out,
                                         const OverlapSampleShape& shape, bool channels_last,
                                         Stream stream) {
  const auto run = [&](auto kernel, std::uint64_t blocks) {
    launch(kernel, dim3(unsigned(blocks)), dim3(kThreads), Taps<Accumulate<T>, C>::bytes(shape),
           stream, grad, boxes, out, shape);
  };
  if (!channels_last) {
    run(overlap_sample_backward_planar<Taps, T, C>, PlanarItem::count(shape, shape.map()));
  } else if (packs_align<T>(shape.channels, grad, out)) {
    run(overlap_sample_backward_pixels<Taps, kPack<T>, T, C>,
        PixelsBlock<kPack<T>>::count(shape, shape.map()));
  } else {
    run(overlap_sample_backward_pixels<Taps, 1, T, C>, PixelsBlock<1>::count(shape, shape.map()));
  }
}

template <class T, class C, class Stream>
void launch_overlap_sample_backward(const T* grad, const C* boxes, T* out,
                                    const OverlapSampleShape& shape, bool channels_last,
                                    Stream stream) {
  constexpr std::size_t most = 48 << 10;  // bytes that every block may have
  // A block of a channels_last map has few pixels, and where cells are few each asks for few taps:
  // fewer than the block would find for all.
  const bool few = channels_last && shape.cells() < shape.map();
  if (!few && SharedTaps<Accumulate<T>, C>::bytes(shape) <= most) {
    launch_overlap_sample_backward_with<SharedTaps>(grad, boxes, out, shape, channels_last, stream);
  } else {
    launch_overlap_sample_backward_with<FoundTaps>(grad, boxes, out, shape, channels_last, stream);
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
