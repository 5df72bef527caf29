// overlap_similarity: pixel_similarity of bilinear samples, which exist in registers alone.
//
//   l = loss(sample(p, boxes_p), sample(z, boxes_z)), statistics as in losses.cuh
//
// The grid is separable, so the taps of its rows and columns are computed first: B (Kh + Kw) of
// them for each map, from the coordinate function of overlap_sample. Forward is pixel_similarity's
// with sources that interpolate. Backward runs pixel_similarity's into one (B, C, Kh, Kw) buffer of
// sample gradients, and overlap_sample's gathers from it.
//
// Mandatory bytes: the parts of both maps under the boxes; backward writes B C H W elements
// besides. A sample reads four neighbours, which the first-level cache has where the grid is dense.
#pragma once

#include "overlap_sample.cuh"
#include "pixel_loss.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

template <class A>
struct alignas(16) StoredTap {
  int low, high;
  A weight;  // NaN where the box is not finite
};

// Taps of all rows, then of all columns, of each image's grid.
template <class A, class C>
__global__ void __launch_bounds__(kThreads)
    box_taps(const C* __restrict__ boxes,                               // [B, 4]
             OverlapSampleShape shape, StoredTap<A>* __restrict__ taps  // [B, Kh + Kw]
    ) {
  const unsigned cells = unsigned(shape.rows) + unsigned(shape.columns);
  const unsigned item = blockIdx.x * kThreads + threadIdx.x;
  const unsigned b = item / cells;
  if (b >= shape.batch) return;
  const int cell = int(item % cells);
  const Box4<C> box = load_box(boxes, b);
  const Tap<A> tap = cell < shape.rows ? cell_tap<A>(box.y1, box.y2, cell, shape.rows, shape.height)
                                       : cell_tap<A>(box.x1, box.x2, cell - shape.rows,
                                                     shape.columns, shape.width);
  store(taps + item, StoredTap<A>{tap.low, tap.high, is_finite(box) ? tap.weight : A(NAN)});
}

// Samples of a map in place of its pixels: one at a time of a planar map (N = 1), N channels of a
// pixels-layout map.
template <class T_, int N_, bool PixelsLayout>
struct SampledSource {
  using T = T_;
  using A = Accumulate<T>;
  static constexpr int N = N_;
  static constexpr int kAtOnce = N == 1 && sizeof(A) == 4 ? 4 : 1;
  static constexpr bool kPixelsLayout = PixelsLayout, kStaged = false;
  const T* base;
  const StoredTap<A>* taps;
  int height, width, rows, columns;

  struct Reader {
    const T* image;
    unsigned low_left, low_right, high_left, high_right;  // offsets of channel 0
    unsigned step;                                        // between channels
    A x_weight, y_weight;
    __device__ __forceinline__ void read(unsigned c, A* values) const {
      const T* first = image + c * step;
      const auto a = load<N>(first + low_left), b = load<N>(first + low_right);
      const auto d = load<N>(first + high_left), e = load<N>(first + high_right);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const A left = mix<A>(to_float(a.values[n]), to_float(d.values[n]), y_weight);
        const A right = mix<A>(to_float(b.values[n]), to_float(e.values[n]), y_weight);
        values[n] = mix<A>(left, right, x_weight);
      }
    }
  };
  __device__ __forceinline__ Reader at(const PixelShape& shape, unsigned b, unsigned pixel) const {
    const StoredTap<A>* image_taps = taps + std::int64_t(b) * (rows + columns);
    const StoredTap<A> y = load(image_taps + pixel / unsigned(columns));
    const StoredTap<A> x = load(image_taps + rows + pixel % unsigned(columns));
    const unsigned map = unsigned(height) * unsigned(width);
    const unsigned scale = PixelsLayout ? shape.channels : 1;
    const unsigned low = unsigned(y.low) * unsigned(width),
                   high = unsigned(y.high) * unsigned(width);
    return {base + std::int64_t(b) * shape.channels * map,
            (low + x.low) * scale,
            (low + x.high) * scale,
            (high + x.low) * scale,
            (high + x.high) * scale,
            PixelsLayout ? 1 : map,
            x.weight,
            y.weight};
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
