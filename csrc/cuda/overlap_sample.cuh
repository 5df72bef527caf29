// overlap_sample: bilinear samples at the cell centres of a box, and the gather that is its
// adjoint.
//
//   out[b, c, i, j] = sum over y, x of share_y(i, y) share_x(j, x) features[b, c, y, x]
//
// where cell i reads two neighbouring rows and cell j two neighbouring columns (csrc/geometry.h).
// Forward gathers by samples, backward by pixels: no atomics, so the same bits every time.
//
// Mandatory bytes: forward reads the part of the map under the box and writes B C Kh Kw elements;
// backward reads B C Kh Kw and writes B C H W. About 8 operations an output element: memory bound.
//
// Three thread mappings. Planar (NCHW): neighbouring threads on neighbouring outputs of one plane,
// then on those of the next planes; each goes through a few planes with the same coordinates, and
// backward of coarse grids in half types through two columns, so that a lane stores 4 bytes.
// Narrow, of planar maps whose planes are a few short rows: walking there, a warp would touch a
// line of memory for each plane. A block takes whole planes, one run of memory, to shared memory
// and its results from there, in packs of 16 bytes; a warp has a column, its lanes neighbouring
// planes. Pixels (channels_last): one thread on N neighbouring channels, 16 bytes where alignment
// allows.
//
// The grid is separable, and a thread walks down a column. Forward, of cells: it interpolates each
// row of pixels along x once, for all cells that read it. Backward, of pixels, and the rows of
// cells beside it: it sums each of these along x once, and the sum counts for the two rows of
// pixels that the cells touch. So little is loaded twice, a thread finds its columns once, and a
// pixel that no cell touches costs its store. The blocks first write the places of all rows and
// columns of cells to shared memory; where these do not fit, each thread finds them anew.
//
// C is the type of coordinates, and of the boxes: double where the features are.
#pragma once

#include "../geometry.h"
#include "device/run.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

struct OverlapSampleShape {
  unsigned batch, channels;
  int height, width;  // of the map
  int rows, columns;  // of the grid of cells

  DENSESIAM_HD unsigned map() const { return unsigned(height) * unsigned(width); }
  DENSESIAM_HD unsigned cells() const { return unsigned(rows) * unsigned(columns); }
};

constexpr int kPlanes = 4;  // of a thread, which share one coordinate computation
constexpr std::size_t kSharedBytes = 48 << 10;  // that every block may have

template <class C>
DENSESIAM_HD Box4<C> load_box(const C* boxes, unsigned b) {
  const C* box = boxes + 4 * std::int64_t(b);
  return {load(box), load(box + 1), load(box + 2), load(box + 3)};
}

// One thread of a planar kernel: one position of at most P planes of one image.
template <unsigned P>
struct PlanarItem {
  unsigned position, channels;  // the position; planes, 0 for a thread beyond the image
  std::int64_t plane;           // index of the first plane in the tensor
  unsigned b;

  __device__ __forceinline__ PlanarItem(const OverlapSampleShape& shape, unsigned positions) {
    const unsigned groups = (shape.channels + P - 1) / P;
    const unsigned blocks = (positions * groups + kThreads - 1) / kThreads;
    const unsigned item = blockIdx.x % blocks * kThreads + threadIdx.x;
    const unsigned first = item / positions * P;
    position = item % positions;
    b = blockIdx.x / blocks;
    const unsigned left = first < shape.channels ? shape.channels - first : 0;
    channels = left < P ? left : P;
    plane = std::int64_t(b) * shape.channels + first;
  }

  static std::uint64_t count(const OverlapSampleShape& shape, std::uint64_t positions) {
    return divide_up(positions * divide_up(shape.channels, P), kThreads) * shape.batch;
  }
};

// A tap in few bytes: a sample has 1 - weight of pixel `low` and weight of the next, if that is not
// 0.
template <class A>
struct alignas(2 * sizeof(A)) Place {
  int low;
  A weight;

  Place() = default;
  DENSESIAM_HD Place(const Tap<A>& tap)
      : low(tap.low), weight(tap.low == tap.high ? A(0) : tap.weight) {}
  DENSESIAM_HD bool reaches(int pixel) const { return low + int(weight != A(0)) >= pixel; }
  // Of a pixel that it touches.
  DENSESIAM_HD A share(int pixel) const { return low == pixel ? A(1) - weight : weight; }
  // Of any pixel.
  DENSESIAM_HD A share_or_0(int pixel) const {
    return low == pixel || low + 1 == pixel ? share(pixel) : A(0);
  }
};

// The cells along one side of a grid, found where they are asked for. They are numbered as their
// pixels ascend: coordinates never fall from one such cell to the next, as no rounding changes an
// order. So the cells that touch a pixel are neighbours, and bisection finds them.
template <class A, class C>
struct FoundCells {
  C from, to;
  int count, extent;

  __device__ __forceinline__ bool mirrored() const { return to < from; }
  __device__ __forceinline__ Place<A> operator[](int number) const {
    const int cell = mirrored() ? count - 1 - number : number;
    return cell_tap<A>(from, to, cell, count, extent);
  }
};

// The same, kept in memory.
template <class A>
struct KeptCells {
  const Place<A>* places;
  int count;
  bool mirrored_;

  __device__ __forceinline__ bool mirrored() const { return mirrored_; }
  __device__ __forceinline__ Place<A> operator[](int number) const { return places[number]; }
};

// The first cell that reaches `pixel` or lies beyond it.
template <class Cells>
__device__ __forceinline__ int first_reaching(const Cells& cells, int pixel) {
  int begin = 0, end = cells.count;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (cells[middle].reaches(pixel)) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// Both sides of the grid: every thread of a block finds its own cells.
template <class A, class C>
struct FoundTaps {
  static constexpr int kBlocks = 3;
  FoundCells<A, C> rows, columns;

  static std::size_t bytes(const OverlapSampleShape&) { return 0; }
  __device__ FoundTaps(const Box4<C>& box, const OverlapSampleShape& shape) {
    rows = {box.y1, box.y2, shape.rows, shape.height};
    columns = {box.x1, box.x2, shape.columns, shape.width};
  }
};

// They find them together, in shared memory.
template <class A, class C>
struct SharedTaps {
  static constexpr int kBlocks = 4;
  KeptCells<A> rows, columns;

  static DENSESIAM_HD std::size_t bytes(const OverlapSampleShape& shape) {
    return (std::size_t(shape.rows) + std::size_t(shape.columns)) * sizeof(Place<A>);
  }
  __device__ __forceinline__ SharedTaps(const Box4<C>& box, const OverlapSampleShape& shape) {
    DENSESIAM_DYNAMIC_SHARED(Place<A>, places);
    const FoundTaps<A, C> found(box, shape);
    for (int n = int(threadIdx.x); n < shape.rows + shape.columns; n += kThreads) {
      places[n] = n < shape.rows ? found.rows[n] : found.columns[n - shape.rows];
    }
    __syncthreads();
    rows = {places, shape.rows, found.rows.mirrored()};
    columns = {places + shape.rows, shape.columns, found.columns.mirrored()};
  }
};

// Where a thread works: a column of a map or a grid, or a part of it.
constexpr unsigned kRows = 20;  // at the most

struct Column {
  int x, first, last;  // and its rows, both included

  static DENSESIAM_HD unsigned parts(int height, unsigned most) {
    return (unsigned(height) + most - 1) / most;
  }
  // How many there are: neighbours first, then those below.
  static DENSESIAM_HD unsigned count(int height, int width, unsigned most = kRows) {
    return unsigned(width) * parts(height, most);
  }
  __device__ __forceinline__ Column(unsigned number, int height, int width, unsigned most = kRows) {
    const unsigned each = (unsigned(height) + parts(height, most) - 1) / parts(height, most);
    const unsigned begin = number / unsigned(width) * each, end = begin + each;
    x = int(number % unsigned(width));
    first = int(begin);
    last = (end < unsigned(height) ? int(end) : height) - 1;
  }
  // A whole one.
  __device__ __forceinline__ Column(int x_, int height) : x(x_), first(0), last(height - 1) {}
};

// One block of a channels_last kernel: each thread has N channels at one position of one image,
// and the block as few channels as fill its warps, for positions share cells.
template <int N>
struct TileBlock {
  unsigned position, channel, b;
  bool inside;

  static DENSESIAM_HD unsigned tiles(unsigned packs) { return (packs + kLanes - 1) / kLanes; }

  __device__ __forceinline__ TileBlock(const OverlapSampleShape& shape, unsigned positions) {
    const unsigned packs = shape.channels / N, count = tiles(packs);
    const unsigned each = (packs + count - 1) / count;
    const unsigned blocks = (positions * each + kThreads - 1) / kThreads;
    const unsigned item = blockIdx.x % blocks * kThreads + threadIdx.x;
    const unsigned tile = blockIdx.x / blocks % count, pack = tile * each + item % each;
    b = blockIdx.x / blocks / count;
    position = item / each;
    channel = pack * N;
    inside = position < positions && pack < packs;
  }

  static std::uint64_t count(const OverlapSampleShape& shape, std::uint64_t positions) {
    const std::uint64_t packs = shape.channels / N, count = tiles(unsigned(packs));
    return divide_up(positions * divide_up(packs, count), kThreads) * count * shape.batch;
  }
};

// N channels of a thread in as many planes. Where only `count` are left it has the last of them
// again and again. It writes M neighbouring columns together.
template <int N_, class T, int M_ = 1>
struct Planes {
  static constexpr int N = N_, M = M_;
  static constexpr int kBatch = M == 1 ? 4 : 3;  // cells of a row that are loaded at once
  static constexpr unsigned between = 1;         // elements from one position to the next
  unsigned count;

  // Elements from `source` or `target` to the first of its planes, of such a size.
  static DENSESIAM_HD unsigned first(unsigned) { return 0; }
  __device__ __forceinline__ unsigned plane(int n) const {
    return unsigned(n) < count ? unsigned(n) : count - 1;
  }
  __device__ __forceinline__ Pack<T, N> read(const T* source, unsigned size) const {
    Pack<T, N> values;
#pragma unroll
    for (int n = 0; n < N; ++n) values.values[n] = load(source + plane(n) * size);
    return values;
  }
  template <class A>
  __device__ __forceinline__ void write(T* target, unsigned size, const A (&values)[M][N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Pack<T, M> pack;
#pragma unroll
      for (int m = 0; m < M; ++m) pack.values[m] = from_float<T>(values[m][n]);
      store<M>(target + plane(n) * size, pack);
    }
  }
};

// The same in shared memory, of every kLanes-th plane: the planes between are other lanes'.
template <int N_, class T>
struct StagedPlanes {
  static constexpr int N = N_, M = 1;
  static constexpr int kBatch = 4 / N;  // the warp has as many cells as its column: it skips others
  static constexpr unsigned between = 1;
  unsigned lane;

  __device__ __forceinline__ unsigned first(unsigned size) const { return lane * size; }
  __device__ __forceinline__ Pack<T, N> read(const T* source, unsigned size) const {
    Pack<T, N> values;
#pragma unroll
    for (int n = 0; n < N; ++n) values.values[n] = source[n * kLanes * size];
    return values;
  }
  template <class A>
  __device__ __forceinline__ void write(T* target, unsigned size, const A (&values)[M][N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) target[n * kLanes * size] = from_float<T>(values[0][n]);
  }
};

// A block of a kernel of narrow planes: whole planes of one image, a run of memory on either side.
// A warp has one column, of which each lane has every kLanes-th plane: it goes one way. Lanes whose
// planes the image has not walk through what lies there, and no one takes what they find.
template <class T, class C>
struct NarrowBlock {
  static constexpr int N = 8 / int(sizeof(T));  // planes of a thread
  static constexpr unsigned kGroup = N * kLanes;
  using Taps = SharedTaps<Accumulate<T>, C>;

  unsigned b, channel, count;  // the image, its first plane here, and how many
  std::int64_t plane;          // index of the first plane in the tensor
  Run<T> source, target;

  // Sizes of the planes that are read, and that are written.
  __device__ __forceinline__ NarrowBlock(const OverlapSampleShape& shape, unsigned from,
                                         unsigned to)
      : b(blockIdx.x / groups(shape)),
        channel(blockIdx.x % groups(shape) * kGroup),
        count(shape.channels - channel < kGroup ? shape.channels - channel : kGroup),
        plane(std::int64_t(b) * shape.channels + channel),
        source(plane * from, count * from, memory(shape)),
        target(plane * to, count * to, memory(shape) + Run<T>::room(kGroup * from)) {}

  // Calls body(x, this lane's planes) for this warp's columns.
  template <class Body>
  static __device__ __forceinline__ void for_each_column(int columns, const Body& body) {
    const StagedPlanes<N, T> planes{threadIdx.x % kLanes};
    for (int x = int(threadIdx.x / kLanes); x < columns; x += kWarps) body(x, planes);
  }

  static DENSESIAM_HD unsigned groups(const OverlapSampleShape& shape) {
    return (shape.channels + kGroup - 1) / kGroup;
  }
  // Shared memory: the taps, then both runs.
  static DENSESIAM_HD std::size_t taps(const OverlapSampleShape& shape) {
    return (Taps::bytes(shape) + 15) / 16 * 16;
  }
  static __device__ __forceinline__ T* memory(const OverlapSampleShape& shape) {
    DENSESIAM_DYNAMIC_SHARED(unsigned char, all);
    return reinterpret_cast<T*>(all + taps(shape));
  }
  static std::size_t bytes(const OverlapSampleShape& shape) {
    return taps(shape) + (Run<T>::room(std::size_t(kGroup) * shape.cells()) +
                          Run<T>::room(std::size_t(kGroup) * shape.map())) *
                             sizeof(T);
  }
  // Whether there is a warp's worth of planes that fit, and lanes whose planes are so far apart
  // that at most two share a bank of shared memory: of other strides four and more would.
  static bool suits(const OverlapSampleShape& shape, const void* a, const void* b) {
    return shape.channels >= kLanes && shape.map() % 4 != 0 && shape.cells() % 4 != 0 &&
           bytes(shape) <= kSharedBytes && packs_align<T>(0, a, b);
  }
};

// N neighbouring channels of a thread.
template <int N_, class T>
struct Neighbours {
  static constexpr int N = N_, M = 1;
  static constexpr int kBatch = 4;
  unsigned between;

  static DENSESIAM_HD unsigned first(unsigned) { return 0; }
  __device__ __forceinline__ Pack<T, N> read(const T* source, unsigned) const {
    return load<N>(source);
  }
  template <class A>
  __device__ __forceinline__ void write(T* target, unsigned, const A (&values)[M][N]) const {
    Pack<T, N> pack;
#pragma unroll
    for (int n = 0; n < N; ++n) pack.values[n] = from_float<T>(values[0][n]);
    store<N>(target, pack);
  }
};

// Walks down a column of cells, in the order of their pixels. A row of pixels is interpolated along
// x once, for all cells that read it. `source` and `target` are the first pixel and the first cell.
template <class Taps, class Channels, class T, class A>
__device__ __forceinline__ void sample_column(const Taps& taps, bool finite, const Tap<A>& x,
                                              const Channels& channels, const T* source, T* target,
                                              const Column& cells,
                                              const OverlapSampleShape& shape) {
  constexpr int N = Channels::N;
  const unsigned row_of_pixels = unsigned(shape.width) * channels.between;
  const unsigned row_of_cells = unsigned(shape.columns) * channels.between;
  source += channels.first(shape.map());
  const T* right = source + unsigned(x.high) * channels.between;
  source += unsigned(x.low) * channels.between;
  const auto read_row = [&](int y, A(&values)[N]) {
    const auto a = channels.read(source + unsigned(y) * row_of_pixels, shape.map());
    const auto b = channels.read(right + unsigned(y) * row_of_pixels, shape.map());
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = mix<A>(to_float(a.values[n]), to_float(b.values[n]), x.weight);
    }
  };
  const bool mirrored = taps.rows.mirrored();
  const unsigned down = mirrored ? 0 - row_of_cells : row_of_cells;
  unsigned row = unsigned(mirrored ? shape.rows - 1 - cells.first : cells.first) * row_of_cells;
  target += channels.first(shape.cells()) + unsigned(cells.x) * channels.between;
  A low[N] = {}, high[N] = {};
  int low_y = -1, high_y = -1;  // the rows that these are
#pragma unroll 1
  for (int number = cells.first; number <= cells.last; ++number, row += down) {
    const Place<A> y = taps.rows[number];
    if (y.low != low_y) {
      if (y.low == high_y) {
#pragma unroll
        for (int n = 0; n < N; ++n) low[n] = high[n];
      } else {
        read_row(y.low, low);
      }
      low_y = y.low;
    }
    if (y.weight != A(0) && y.low + 1 != high_y) read_row(high_y = y.low + 1, high);
    A values[1][N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const A value = y.weight != A(0) ? mix<A>(low[n], high[n], y.weight) : low[n];
      values[0][n] = finite ? value : A(NAN);
    }
    channels.write(target + row, shape.cells(), values);
  }
}

// Rows of cells that a thread walks down. Those of a coarse grid have no row of pixels in common:
// enough that finding their places is little beside them. In a narrow plane the lanes of a warp go
// on to the next rows, or they would write to many planes at once.
DENSESIAM_HD unsigned rows_together(const OverlapSampleShape& shape, bool channels_last) {
  if (!channels_last && shape.columns < int(kLanes)) return 1;
  return shape.rows < shape.height / 2 ? 4 : kRows;
}

template <template <class, class> class Taps, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : Taps<Accumulate<T>, C>::kBlocks)
    overlap_sample_planar(const T* __restrict__ features,  // [B, C, H, W]
                          const C* __restrict__ boxes,     // [B, 4]
                          T* __restrict__ out,             // [B, C, Kh, Kw]
                          OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const unsigned most = rows_together(shape, false);
  const PlanarItem<kPlanes> item(shape, Column::count(shape.rows, shape.columns, most));
  const Box4<C> box = load_box(boxes, item.b);
  const Taps<A, C> taps(box, shape);
  if (item.channels == 0) return;
  const Column cells(item.position, shape.rows, shape.columns, most);
  const Tap<A> x = cell_tap<A>(box.x1, box.x2, cells.x, shape.columns, shape.width);
  sample_column(taps, is_finite(box), x, Planes<kPlanes, T>{item.channels},
                features + item.plane * shape.map(), out + item.plane * shape.cells(), cells,
                shape);
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_narrow(const T* __restrict__ features,  // [B, C, H, W]
                          const C* __restrict__ boxes,     // [B, 4]
                          T* __restrict__ out,             // [B, C, Kh, Kw]
                          OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const NarrowBlock<T, C> block(shape, shape.map(), shape.cells());
  const Box4<C> box = load_box(boxes, block.b);
  block.source.stage(features);
  const SharedTaps<A, C> taps(box, shape);  // waits for what is staged, too
  block.for_each_column(shape.columns, [&](int column, const auto& planes) {
    const Tap<A> x = cell_tap<A>(box.x1, box.x2, column, shape.columns, shape.width);
    sample_column(taps, is_finite(box), x, planes, block.source.shared, block.target.shared,
                  Column(column, shape.rows), shape);
  });
  __syncthreads();
  block.target.unstage(out);
}

template <template <class, class> class Taps, int N, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : Taps<Accumulate<T>, C>::kBlocks)
    overlap_sample_pixels(const T* __restrict__ features,  // [B, C, H, W]
                          const C* __restrict__ boxes,     // [B, 4]
                          T* __restrict__ out,             // [B, C, Kh, Kw]
                          OverlapSampleShape shape) {
  using A = Accumulate<T>;
  const unsigned most = rows_together(shape, true);
  const TileBlock<N> block(shape, Column::count(shape.rows, shape.columns, most));
  const Box4<C> box = load_box(boxes, block.b);
  const Taps<A, C> taps(box, shape);
  if (!block.inside) return;
  const Column cells(block.position, shape.rows, shape.columns, most);
  const Tap<A> x = cell_tap<A>(box.x1, box.x2, cells.x, shape.columns, shape.width);
  const std::int64_t image = std::int64_t(block.b) * shape.channels;
  sample_column(taps, is_finite(box), x, Neighbours<N, T>{shape.channels},
                features + image * shape.map() + block.channel,
                out + image * shape.cells() + block.channel, cells, shape);
}

// Walks down a column of pixels, or M of them side by side. Each row of cells is summed along x
// once, and counts for the two rows of pixels that it touches: the one at hand and the next.
// `source` and `target` are the first cell and the first pixel.
template <class Taps, class Channels, class T>
__device__ __forceinline__ void gather_column(const Taps& taps, bool finite,
                                              const Channels& channels, const T* source, T* target,
                                              const Column& pixels,
                                              const OverlapSampleShape& shape) {
  using A = Accumulate<T>;
  constexpr int N = Channels::N, M = Channels::M;
  constexpr int together = 2 + 2 * M;  // cells of a row whose shares are kept
  const int x = pixels.x;
  const unsigned row_of_pixels = unsigned(shape.width) * channels.between;
  target += channels.first(shape.map()) + unsigned(pixels.first) * row_of_pixels +
            unsigned(x) * channels.between;

  const int begin = first_reaching(taps.columns, x);
  int end = begin;
  while (end < shape.columns && taps.columns[end].low < x + M) ++end;
  // The same in the order of memory, of which the shares are here.
  const int cells = end - begin;
  const bool mirrored = taps.columns.mirrored();
  unsigned row = channels.first(shape.cells()) +
                 unsigned(mirrored ? shape.columns - end : begin) * channels.between;
  const int from = mirrored ? end - 1 : begin, step = mirrored ? -1 : 1;
  const auto find_shares = [&](int first, A(&shares)[M][together]) {
#pragma unroll
    for (int k = 0; k < together; ++k) {
      if (first + k < cells) {
        const Place<A> place = taps.columns[from + step * (first + k)];
#pragma unroll
        for (int m = 0; m < M; ++m) {
          shares[m][k] = M == 1 ? place.share(x) : place.share_or_0(x + m);
        }
      }
    }
  };
  const auto add_cells = [&](const T* row, int left, const A(&shares)[M][together],
                             A(&sums)[M][N]) {
    constexpr int batch = Channels::kBatch;
    static_assert(together % batch == 0);
#pragma unroll
    for (int first = 0; first < together; first += batch) {
      if (first > 0 && first >= left) break;
      Pack<T, N> values[batch];
#pragma unroll
      for (int k = 0; k < batch; ++k) {
        if (first + k < left) {
          values[k] = channels.read(row + unsigned(first + k) * channels.between, shape.cells());
        }
      }
#pragma unroll
      for (int k = 0; k < batch; ++k) {
        if (first + k >= left) continue;
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const A value = to_float(values[k].values[n]);
#pragma unroll
          for (int m = 0; m < M; ++m) {
            const A share = shares[m][first + k];
            // A cell may have no share in one of two columns: 0 and an infinity would be a NaN.
            if (M == 1 || share != A(0)) sums[m][n] += share * value;
          }
        }
      }
    }
  };
  A shares[M][together];
  find_shares(0, shares);

  int y = pixels.first;
  A here[M][N] = {}, next[M][N] = {};  // sums of rows y and y + 1
  const auto write_until = [&](int row) {
#pragma unroll 1
    for (; y < row; ++y) {
      channels.write(target, shape.map(), here);
      target += row_of_pixels;
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) here[m][n] = next[m][n], next[m][n] = A(0);
      }
    }
  };
  // Every cell reaches row 0.
  int number = !finite ? shape.rows : y == 0 ? 0 : first_reaching(taps.rows, y);
  const unsigned row_of_cells = unsigned(shape.columns) * channels.between;
  const unsigned down = taps.rows.mirrored() ? 0 - row_of_cells : row_of_cells;
  row += unsigned(taps.rows.mirrored() ? shape.rows - 1 - number : number) * row_of_cells;
#pragma unroll 1
  for (; number < shape.rows; ++number, row += down) {
    const Place<A> place = taps.rows[number];
    if (place.low > pixels.last) break;
    write_until(place.low);
    A sums[M][N] = {};
    if (cells <= together) {
      add_cells(source + row, cells, shares, sums);
    } else {
#pragma unroll 1
      for (int cell = 0; cell < cells; ++cell) {
        A one[M][together];
        find_shares(cell, one);
        add_cells(source + row + unsigned(cell) * channels.between, 1, one, sums);
      }
    }
    const A share = place.share(y);
    const bool both = place.low == y && place.weight != A(0);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        here[m][n] += share * sums[m][n];
        if (both) next[m][n] += place.weight * sums[m][n];  // 0 and an infinity would be a NaN
      }
    }
  }
  write_until(pixels.last + 1);
}

template <template <class, class> class Taps, int M, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : Taps<Accumulate<T>, C>::kBlocks)
    overlap_sample_backward_planar(const T* __restrict__ grad,   // [B, C, Kh, Kw]
                                   const C* __restrict__ boxes,  // [B, 4]
                                   T* __restrict__ out,          // [B, C, H, W]
                                   OverlapSampleShape shape) {
  const PlanarItem<kPlanes / M> item(shape, Column::count(shape.height, shape.width / M));
  const Box4<C> box = load_box(boxes, item.b);
  const Taps<Accumulate<T>, C> taps(box, shape);
  if (item.channels == 0) return;
  Column pixels(item.position, shape.height, shape.width / M);
  pixels.x *= M;
  gather_column(taps, is_finite(box), Planes<kPlanes / M, T, M>{item.channels},
                grad + item.plane * shape.cells(), out + item.plane * shape.map(), pixels, shape);
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 4)
    overlap_sample_backward_narrow(const T* __restrict__ grad,   // [B, C, Kh, Kw]
                                   const C* __restrict__ boxes,  // [B, 4]
                                   T* __restrict__ out,          // [B, C, H, W]
                                   OverlapSampleShape shape) {
  const NarrowBlock<T, C> block(shape, shape.cells(), shape.map());
  const Box4<C> box = load_box(boxes, block.b);
  block.source.stage(grad);
  const SharedTaps<Accumulate<T>, C> taps(box, shape);  // waits for what is staged, too
  block.for_each_column(shape.width, [&](int x, const auto& planes) {
    gather_column(taps, is_finite(box), planes, block.source.shared, block.target.shared,
                  Column(x, shape.height), shape);
  });
  __syncthreads();
  block.target.unstage(out);
}

template <template <class, class> class Taps, int N, class T, class C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1
                                            : N > 4        ? 3
                                                           : Taps<Accumulate<T>, C>::kBlocks)
    overlap_sample_backward_pixels(const T* __restrict__ grad,   // [B, C, Kh, Kw]
                                   const C* __restrict__ boxes,  // [B, 4]
                                   T* __restrict__ out,          // [B, C, H, W]
                                   OverlapSampleShape shape) {
  const TileBlock<N> block(shape, Column::count(shape.height, shape.width));
  const Box4<C> box = load_box(boxes, block.b);
  const Taps<Accumulate<T>, C> taps(box, shape);
  if (!block.inside) return;
  const std::int64_t image = std::int64_t(block.b) * shape.channels;
  gather_column(taps, is_finite(box), Neighbours<N, T>{shape.channels},
                grad + image * shape.cells() + block.channel,
                out + image * shape.map() + block.channel,
                Column(block.position, shape.height, shape.width), shape);
}

// Whether the places of a grid fit a block's shared memory.
template <class T, class C>
bool taps_fit(const OverlapSampleShape& shape) {
  return SharedTaps<Accumulate<T>, C>::bytes(shape) <= kSharedBytes;
}

template <template <class, class> class Taps, class T, class C, class Stream>
void launch_overlap_sample_with(const T* features, const C* boxes, T* out,
                                const OverlapSampleShape& shape, bool channels_last,
                                Stream stream) {
  const auto run = [&](auto kernel, std::uint64_t blocks) {
    launch(kernel, dim3(unsigned(blocks)), dim3(kThreads), Taps<Accumulate<T>, C>::bytes(shape),
           stream, features, boxes, out, shape);
  };
  const unsigned columns =
      Column::count(shape.rows, shape.columns, rows_together(shape, channels_last));
  if (!channels_last) {
    run(overlap_sample_planar<Taps, T, C>, PlanarItem<kPlanes>::count(shape, columns));
  } else if (packs_align<T>(shape.channels, features, out)) {
    run(overlap_sample_pixels<Taps, kPack<T>, T, C>, TileBlock<kPack<T>>::count(shape, columns));
  } else {
    run(overlap_sample_pixels<Taps, 1, T, C>, TileBlock<1>::count(shape, columns));
  }
}

template <class T, class C, class Stream>
void launch_overlap_sample(const T* features, const C* boxes, T* out,
                           const OverlapSampleShape& shape, bool channels_last, Stream stream) {
  if (!channels_last && NarrowBlock<T, C>::suits(shape, features, out)) {
    launch(overlap_sample_narrow<T, C>, dim3(NarrowBlock<T, C>::groups(shape) * shape.batch),
           dim3(kThreads), NarrowBlock<T, C>::bytes(shape), stream, features, boxes, out, shape);
  } else if (taps_fit<T, C>(shape)) {
    launch_overlap_sample_with<SharedTaps>(features, boxes, out, shape, channels_last, stream);
  } else {
    launch_overlap_sample_with<FoundTaps>(features, boxes, out, shape, channels_last, stream);
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
  const unsigned columns = Column::count(shape.height, shape.width);
  if (!channels_last) {
    // A lane's store of 2 bytes takes as long as one of 4: two columns of half types together,
    // where cells are few and stores are what takes time. (With a cell a pixel an H100 takes 176 us
    // that way, and 153 with single columns.)
    if constexpr (sizeof(T) == 2 && std::is_same_v<Taps<T, C>, SharedTaps<T, C>>) {
      const bool aligned = reinterpret_cast<std::uintptr_t>(out) % 4 == 0;
      if (shape.width % 2 == 0 && shape.columns <= shape.width / 2 && aligned) {
        return run(overlap_sample_backward_planar<Taps, 2, T, C>,
                   PlanarItem<kPlanes / 2>::count(shape, columns / 2));
      }
    }
    run(overlap_sample_backward_planar<Taps, 1, T, C>, PlanarItem<kPlanes>::count(shape, columns));
  } else if (packs_align<T>(shape.channels, grad, out)) {
    run(overlap_sample_backward_pixels<Taps, kPack<T>, T, C>,
        TileBlock<kPack<T>>::count(shape, columns));
  } else {
    run(overlap_sample_backward_pixels<Taps, 1, T, C>, TileBlock<1>::count(shape, columns));
  }
}

template <class T, class C, class Stream>
void launch_overlap_sample_backward(const T* grad, const C* boxes, T* out,
                                    const OverlapSampleShape& shape, bool channels_last,
                                    Stream stream) {
  if (!channels_last && NarrowBlock<T, C>::suits(shape, grad, out)) {
    launch(overlap_sample_backward_narrow<T, C>,
           dim3(NarrowBlock<T, C>::groups(shape) * shape.batch), dim3(kThreads),
           NarrowBlock<T, C>::bytes(shape), stream, grad, boxes, out, shape);
  } else if (taps_fit<T, C>(shape)) {
    launch_overlap_sample_backward_with<SharedTaps>(grad, boxes, out, shape, channels_last, stream);
  } else {
    launch_overlap_sample_backward_with<FoundTaps>(grad, boxes, out, shape, channels_last, stream);
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
