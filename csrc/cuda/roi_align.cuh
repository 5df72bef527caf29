// roi_align: means of bilinear samples over the cells of boxes, and the gather that is its adjoint.
//
//   out[r, c, i, j] = 1 / n sum over points (a, b) of cell (i, j), y and x
//                     share_y(a, y) share_x(b, x) features[image(r), c, y, x]
//
// (csrc/roi_geometry.h). Forward gathers by cells, backward by pixels. A block of backward has some
// pixels of one image: it picks the boxes that may touch them, kThreads at a time, into shared
// memory and in order; each thread then inverts the coordinate function of each of those to a
// conservative range of points, asks the forward's own function for the exact share of each, and
// sums in ascending order. No atomics, so the same bits every time, and no memory beyond the
// result.
//
// Mandatory bytes: forward reads what of the maps lies under boxes and writes R C Kh Kw elements;
// backward reads these and writes B C H W. About 8 operations an element and point.
//
// Two thread mappings, one a layout. Planar (NCHW): neighbouring threads on neighbouring cells of
// one box, or on a square of pixels; a loop over kRoiChannels planes shares the coordinates. Pixels
// (channels_last): one thread on N neighbouring channels, 16 bytes where alignment allows.
//
// C is the type of coordinates, and of the boxes: double where the features are.
#pragma once

#include "../roi_geometry.h"
#include "device/block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

template <class C>
struct RoiAlignShape {
  unsigned batch, boxes, channels;
  int height, width;  // of a map
  int rows, columns;  // of a box's cells
  RoiRules<C> rules;

  DENSESIAM_HD unsigned map() const { return unsigned(height) * unsigned(width); }
  DENSESIAM_HD unsigned cells() const { return unsigned(rows) * unsigned(columns); }
};

constexpr int kRoiChannels = 8;  // planes that share one coordinate computation
constexpr int kSide = 16;        // of the square of pixels that a planar block of backward has
static_assert(kSide * kSide == kThreads);

// Blocks that fit a multiprocessor's registers at once, at least.
template <class C>
constexpr int kRoiBlocks = sizeof(C) == 8 ? 1 : 2;

template <class C>
struct RoiBox {
  RoiAxis<C> y, x;
  int image;  // -1 where the box is not finite or its image not there

  DENSESIAM_HD C points() const {
    const C count = C(y.points) * C(x.points);
    return count > C(0) ? count : C(1);
  }
};

template <class C>
DENSESIAM_HD RoiBox<C> load_roi(const C* boxes, unsigned r, const RoiAlignShape<C>& shape) {
  const C* box = boxes + 5 * std::int64_t(r);
  const C image = load(box);
  const Box4<C> edges{load(box + 1), load(box + 2), load(box + 3), load(box + 4)};
  const bool there = image > C(-1) && image < C(shape.batch) && is_finite(edges);
  return {roi_axis(edges.y1, edges.y2, shape.rows, shape.height, shape.rules),
          roi_axis(edges.x1, edges.x2, shape.columns, shape.width, shape.rules),
          there ? int(image) : -1};
}

// Calls add(y, x, share) for every pixel that a point of the cell reads with a share of the mean.
// What is summed is divided first: the sum of n large numbers need not fit the type of their mean.
template <class A, class C, class Add>
__device__ __forceinline__ void for_each_read(const RoiBox<C>& box, int i, int j, const Add& add) {
  const PointRange rows = points_of_cell(box.y, points_on_map(box.y), i);
  const PointRange columns = points_of_cell(box.x, points_on_map(box.x), j);
  const A part = A(quotient(C(1), box.points()));
  for (int a = rows.begin; a < rows.end; ++a) {
    const RoiTap<C> y = roi_tap(box.y, i, a);
    if (!y.counts) continue;
    for (int b = columns.begin; b < columns.end; ++b) {
      const RoiTap<C> x = roi_tap(box.x, j, b);
      if (!x.counts) continue;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const bool lower = corner / 2, right = corner % 2;
        const A share =
            A(lower ? y.weight : C(1) - y.weight) * A(right ? x.weight : C(1) - x.weight) * part;
        if (share != A(0)) add(lower ? y.high : y.low, right ? x.high : x.low, share);
      }
    }
  }
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads, kRoiBlocks<C>)
    roi_align_planar(const T* __restrict__ features,  // [B, C, H, W]
                     const C* __restrict__ boxes,     // [R, 5]
                     T* __restrict__ out,             // [R, C, Kh, Kw]
                     RoiAlignShape<C> shape) {
  using A = Accumulate<T>;
  const unsigned groups = (shape.channels + kRoiChannels - 1) / kRoiChannels;
  const unsigned tiles = (groups * shape.cells() + kThreads - 1) / kThreads;
  const unsigned item = blockIdx.x % tiles * kThreads + threadIdx.x, r = blockIdx.x / tiles;
  if (item >= groups * shape.cells()) return;
  const unsigned first = item / shape.cells() * kRoiChannels, cell = item % shape.cells();
  const unsigned channels =
      shape.channels - first < kRoiChannels ? shape.channels - first : kRoiChannels;
  const RoiBox<C> box = load_roi(boxes, r, shape);
  A sums[kRoiChannels] = {};
  if (box.image >= 0) {
    const T* planes =
        features + (std::int64_t(box.image) * shape.channels + first) * std::int64_t(shape.map());
    const int i = int(cell / unsigned(shape.columns)), j = int(cell % unsigned(shape.columns));
    for_each_read<A>(box, i, j, [&](int y, int x, A share) {
      const T* pixel = planes + (unsigned(y) * unsigned(shape.width) + unsigned(x));
#pragma unroll
      for (unsigned c = 0; c < kRoiChannels; ++c) {
        if (c < channels) sums[c] += share * to_float(load(pixel + std::int64_t(c) * shape.map()));
      }
    });
  }
  T* target = out + (std::int64_t(r) * shape.channels + first) * shape.cells() + cell;
#pragma unroll
  for (unsigned c = 0; c < kRoiChannels; ++c) {
    if (c < channels) {
      store(target + std::int64_t(c) * shape.cells(),
            from_float<T>(box.image >= 0 ? sums[c] : A(NAN)));
    }
  }
}

template <int N, class T, class C>
__global__ void __launch_bounds__(kThreads, kRoiBlocks<C>)
    roi_align_pixels(const T* __restrict__ features,  // [B, C, H, W]
                     const C* __restrict__ boxes,     // [R, 5]
                     T* __restrict__ out,             // [R, C, Kh, Kw]
                     RoiAlignShape<C> shape) {
  using A = Accumulate<T>;
  const unsigned packs = shape.channels / N;
  const unsigned tiles = (packs * shape.cells() + kThreads - 1) / kThreads;
  const unsigned item = blockIdx.x % tiles * kThreads + threadIdx.x, r = blockIdx.x / tiles;
  if (item >= packs * shape.cells()) return;
  const unsigned cell = item / packs, channel = item % packs * N;
  const RoiBox<C> box = load_roi(boxes, r, shape);
  A sums[N] = {};
  if (box.image >= 0) {
    const T* image = features + std::int64_t(box.image) * shape.map() * shape.channels + channel;
    const int i = int(cell / unsigned(shape.columns)), j = int(cell % unsigned(shape.columns));
    for_each_read<A>(box, i, j, [&](int y, int x, A share) {
      const auto values =
          load<N>(image + (unsigned(y) * unsigned(shape.width) + unsigned(x)) * shape.channels);
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += share * to_float(values.values[k]);
    });
  }
  Pack<T, N> result;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    result.values[k] = from_float<T>(box.image >= 0 ? sums[k] : A(NAN));
  }
  store<N>(out + (std::int64_t(r) * shape.cells() + cell) * shape.channels + channel, result);
}

// Calls add(r, i, j, share) for every cell with a share of the pixel, in ascending order. All
// threads of a block must call it together, `inside` or not; between them they have pixels of rows
// [top, bottom] and columns [left, right] of one image.
template <class A, class C, class Add>
__device__ __forceinline__ void for_each_touching(const C* boxes, const RoiAlignShape<C>& shape,
                                                  int image, int top, int bottom, int left,
                                                  int right, bool inside, int y, int x,
                                                  const Add& add) {
  DENSESIAM_SHARED(RoiBox<C>, picked, kThreads);
  DENSESIAM_SHARED(unsigned, number, kThreads);
  DENSESIAM_SHARED(unsigned, votes, kWarps);
  const unsigned lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  for (unsigned first = 0; first < shape.boxes; first += kThreads) {
    const unsigned own = first + threadIdx.x;
    RoiBox<C> box{};
    bool touches = false;
    if (own < shape.boxes) {
      box = load_roi(boxes, own, shape);
      const PointRange rows = roi_points(box.y, C(top - 1), C(bottom + 1));
      const PointRange columns = roi_points(box.x, C(left - 1), C(right + 1));
      touches = box.image == image && rows.begin < rows.end && columns.begin < columns.end;
    }
    const unsigned vote = __ballot_sync(kAllLanes, touches);
    if (lane == 0) votes[warp] = vote;
    __syncthreads();
    unsigned count = 0, place = __popc(vote & ((1u << lane) - 1u));
#pragma unroll
    for (unsigned w = 0; w < kWarps; ++w) {
      const unsigned here = __popc(votes[w]);
      if (w < warp) place += here;
      count += here;
    }
    if (touches) picked[place] = box, number[place] = own;
    __syncthreads();
    for (unsigned p = 0; inside && p < count; ++p) {
      const RoiAxis<C> of_y = picked[p].y, of_x = picked[p].x;
      const PointRange rows = roi_points(of_y, C(y - 1), C(y + 1));
      const PointRange columns = roi_points(of_x, C(x - 1), C(x + 1));
      if (columns.begin >= columns.end) continue;
      const C points = picked[p].points();
      for (int a = rows.begin; a < rows.end;) {
        const int i = a / of_y.points;
        C share_y = C(0);
        for (; a < rows.end && a - i * of_y.points < of_y.points; ++a) {
          share_y += roi_share(roi_tap(of_y, i, a - i * of_y.points), y);
        }
        if (share_y == C(0)) continue;
        for (int b = columns.begin; b < columns.end;) {
          const int j = b / of_x.points;
          C share_x = C(0);
          for (; b < columns.end && b - j * of_x.points < of_x.points; ++b) {
            share_x += roi_share(roi_tap(of_x, j, b - j * of_x.points), x);
          }
          if (share_x != C(0)) add(number[p], i, j, A(quotient(share_y * share_x, points)));
        }
      }
    }
    __syncthreads();  // the next boxes take the place of these
  }
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads, kRoiBlocks<C>)
    roi_align_backward_planar(const T* __restrict__ grad,   // [R, C, Kh, Kw]
                              const C* __restrict__ boxes,  // [R, 5]
                              T* __restrict__ out,          // [B, C, H, W]
                              RoiAlignShape<C> shape) {
  using A = Accumulate<T>;
  const unsigned across = (unsigned(shape.width) + kSide - 1) / kSide;
  const unsigned tiles = across * ((unsigned(shape.height) + kSide - 1) / kSide);
  const unsigned groups = (shape.channels + kRoiChannels - 1) / kRoiChannels;
  const unsigned tile = blockIdx.x % tiles, image = blockIdx.x / tiles / groups;
  const unsigned first = blockIdx.x / tiles % groups * kRoiChannels;
  const unsigned channels =
      shape.channels - first < kRoiChannels ? shape.channels - first : kRoiChannels;
  const int top = int(tile / across) * kSide, left = int(tile % across) * kSide;
  const int y = top + int(threadIdx.x / kSide), x = left + int(threadIdx.x % kSide);
  const bool inside = y < shape.height && x < shape.width;
  A sums[kRoiChannels] = {};
  for_each_touching<A>(
      boxes, shape, int(image), top, top + kSide - 1, left, left + kSide - 1, inside, y, x,
      [&](unsigned r, int i, int j, A share) {
        const T* source = grad + (std::int64_t(r) * shape.channels + first) * shape.cells() +
                          (unsigned(i) * unsigned(shape.columns) + unsigned(j));
#pragma unroll
        for (unsigned c = 0; c < kRoiChannels; ++c) {
          if (c < channels) {
            sums[c] += share * to_float(load(source + std::int64_t(c) * shape.cells()));
          }
        }
      });
  if (!inside) return;
  T* target = out + (std::int64_t(image) * shape.channels + first) * shape.map() +
              (unsigned(y) * unsigned(shape.width) + unsigned(x));
#pragma unroll
  for (unsigned c = 0; c < kRoiChannels; ++c) {
    if (c < channels) store(target + std::int64_t(c) * shape.map(), from_float<T>(sums[c]));
  }
}

template <int N, class T, class C>
__global__ void __launch_bounds__(kThreads, kRoiBlocks<C>)
    roi_align_backward_pixels(const T* __restrict__ grad,   // [R, C, Kh, Kw]
                              const C* __restrict__ boxes,  // [R, 5]
                              T* __restrict__ out,          // [B, C, H, W]
                              RoiAlignShape<C> shape) {
  using A = Accumulate<T>;
  const unsigned packs = shape.channels / N, items = shape.map() * packs;
  const unsigned tiles = (items + kThreads - 1) / kThreads;
  const unsigned begin = blockIdx.x % tiles * kThreads, item = begin + threadIdx.x;
  const unsigned image = blockIdx.x / tiles;
  const unsigned last = begin + kThreads < items ? begin + kThreads - 1 : items - 1;
  const unsigned pixel = item / packs, channel = item % packs * N;
  const int top = int(begin / packs / unsigned(shape.width));
  const int bottom = int(last / packs / unsigned(shape.width));
  const bool one_row = top == bottom;
  const int left = one_row ? int(begin / packs % unsigned(shape.width)) : 0;
  const int right = one_row ? int(last / packs % unsigned(shape.width)) : shape.width - 1;
  const bool inside = item < items;
  A sums[N] = {};
  for_each_touching<A>(
      boxes, shape, int(image), top, bottom, left, right, inside,
      int(pixel / unsigned(shape.width)), int(pixel % unsigned(shape.width)),
      [&](unsigned r, int i, int j, A share) {
        const unsigned cell = unsigned(i) * unsigned(shape.columns) + unsigned(j);
        const auto values =
            load<N>(grad + (std::int64_t(r) * shape.cells() + cell) * shape.channels + channel);
#pragma unroll
        for (int k = 0; k < N; ++k) sums[k] += share * to_float(values.values[k]);
      });
  if (!inside) return;
  Pack<T, N> result;
#pragma unroll
  for (int k = 0; k < N; ++k) result.values[k] = from_float<T>(sums[k]);
  store<N>(out + (std::int64_t(image) * shape.map() + pixel) * shape.channels + channel, result);
}

template <class T, class C, class Stream>
void launch_roi_align(const T* features, const C* boxes, T* out, const RoiAlignShape<C>& shape,
                      bool channels_last, Stream stream) {
  const auto run = [&](auto kernel, std::uint64_t each) {
    const std::uint64_t blocks = shape.boxes * divide_up(each * shape.cells(), kThreads);
    launch(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, features, boxes, out, shape);
  };
  if (!channels_last) {
    run(roi_align_planar<T, C>, divide_up(shape.channels, kRoiChannels));
  } else if (packs_align<T>(shape.channels, features, out)) {
    run(roi_align_pixels<kPack<T>, T, C>, shape.channels / kPack<T>);
  } else {
    run(roi_align_pixels<1, T, C>, shape.channels);
  }
}

template <class T, class C, class Stream>
void launch_roi_align_backward(const T* grad, const C* boxes, T* out, const RoiAlignShape<C>& shape,
                               bool channels_last, Stream stream) {
  const auto run = [&](auto kernel, std::uint64_t blocks) {
    launch(kernel, dim3(unsigned(blocks * shape.batch)), dim3(kThreads), 0, stream, grad, boxes,
           out, shape);
  };
  const std::uint64_t map = shape.map();
  if (!channels_last) {
    run(roi_align_backward_planar<T, C>, divide_up(shape.height, kSide) *
                                             divide_up(shape.width, kSide) *
                                             divide_up(shape.channels, kRoiChannels));
  } else if (packs_align<T>(shape.channels, grad, out)) {
    run(roi_align_backward_pixels<kPack<T>, T, C>,
        divide_up(map * (shape.channels / kPack<T>), kThreads));
  } else {
    run(roi_align_backward_pixels<1, T, C>, divide_up(map * shape.channels, kThreads));
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
