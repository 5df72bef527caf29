// overlap_sample on the CPU: bilinear samples on a separable grid, and the gather that is its
// adjoint.
//
// Both passes are separable. Forward interpolates two input rows into one, then along it. Backward
// first gathers, for one input row, the sample rows that touch it, then along it the sample
// columns. Work is split over whole planes or rows and each is summed in ascending order of
// samples, so the bits do not depend on the number of threads.
#include <algorithm>
#include <vector>

#include "../common/geometry.h"
#include "../common/overlap_sample_args.h"
#include "../common/simd.h"

namespace densesiam {
namespace {

// A plane of fewer elements than this is not worth a thread of its own.
constexpr std::int64_t kGrain = 16384;

struct Shape {
  std::int64_t batch, channels;
  int height, width, rows, columns;
};

// Forward taps of one axis, as arrays.
template <class A>
struct Taps {
  std::vector<int> low, high;
  std::vector<A> weight;
  int first = 0, last = 0;  // the map's indices in use

  template <class C>
  void build(C from, C to, int count, int extent) {
    low.resize(count);
    high.resize(count);
    weight.resize(count);
    first = extent;
    last = 0;
    for (int cell = 0; cell < count; ++cell) {
      const Tap<C> tap = cell_tap(from, to, cell, count, extent);
      low[cell] = tap.low;
      high[cell] = tap.high;
      weight[cell] = A(tap.weight);
      first = std::min(first, tap.low);
      last = std::max(last, tap.high);
    }
  }
};

// The adjoint of an axis: for each map index the samples that touch it, in ascending order.
template <class A>
struct Touching {
  std::vector<int> start;  // extent + 1
  std::vector<int> cell;
  std::vector<A> share;
  int most = 0;
  // The same by slot (slot s of every index side by side), padded with share 0 of cell `count`.
  std::vector<int> slot_cell;
  std::vector<A> slot_share;

  template <class C>
  void build(C from, C to, int count, int extent) {
    std::vector<Tap<C>> taps(count);
    start.assign(extent + 1, 0);
    for (int j = 0; j < count; ++j) {
      taps[j] = cell_tap(from, to, j, count, extent);
      ++start[taps[j].low + 1];
      if (taps[j].high != taps[j].low) ++start[taps[j].high + 1];
    }
    most = *std::max_element(start.begin(), start.end());
    for (int e = 0; e < extent; ++e) start[e + 1] += start[e];
    cell.resize(start[extent]);
    share.resize(start[extent]);
    std::vector<int> next(start.begin(), start.end() - 1);
    for (int j = 0; j < count; ++j) {
      const auto append = [&](int pixel) {
        cell[next[pixel]] = j;
        share[next[pixel]++] = A(tap_share(taps[j], pixel));
      };
      append(taps[j].low);
      if (taps[j].high != taps[j].low) append(taps[j].high);
    }
  }

  void build_slots(int count, int extent) {
    slot_cell.assign(std::size_t(most) * extent, count);
    slot_share.assign(std::size_t(most) * extent, A(0));
    for (int e = 0; e < extent; ++e) {
      for (int k = start[e]; k < start[e + 1]; ++k) {
        const std::size_t slot = std::size_t(k - start[e]) * extent + e;
        slot_cell[slot] = cell[k];
        slot_share[slot] = share[k];
      }
    }
  }
};

template <class A>
DENSESIAM_HD A mix(A low, A high, A weight) {
  return low + weight * (high - low);
}

template <class T, class A>
DENSESIAM_HD void forward_plane(const T* __restrict in, T* __restrict out, const Shape& shape,
                                const Taps<A>& y, const Taps<A>& x, A* __restrict row) {
  const int* __restrict x_low = x.low.data();
  const int* __restrict x_high = x.high.data();
  const A* __restrict x_weight = x.weight.data();
  // A few samples of a wide row: interpolate only where they fall.
  const bool sparse = x.last - x.first > 4 * shape.columns;
  for (int i = 0; i < shape.rows; ++i) {
    const T* __restrict low = in + std::int64_t(y.low[i]) * shape.width;
    const T* __restrict high = in + std::int64_t(y.high[i]) * shape.width;
    const A weight = y.weight[i];
    T* __restrict target = out + std::int64_t(i) * shape.columns;
    if (sparse) {
      for (int j = 0; j < shape.columns; ++j) {
        const int a = x_low[j], b = x_high[j];
        target[j] =
            from_float<T>(mix(mix<A>(to_float(low[a]), to_float(high[a]), weight),
                              mix<A>(to_float(low[b]), to_float(high[b]), weight), x_weight[j]));
      }
      continue;
    }
    for (int k = x.first; k <= x.last; ++k) {
      row[k] = mix<A>(to_float(low[k]), to_float(high[k]), weight);
    }
    for (int j = 0; j < shape.columns; ++j) {
      target[j] = from_float<T>(mix(row[x_low[j]], row[x_high[j]], x_weight[j]));
    }
  }
}

template <class T, class A>
DENSESIAM_HD void forward_row(const T* __restrict in, T* __restrict out, const Shape& shape, int i,
                              const Taps<A>& y, const Taps<A>& x) {
  const std::int64_t channels = shape.channels;
  const T* low = in + std::int64_t(y.low[i]) * shape.width * channels;
  const T* high = in + std::int64_t(y.high[i]) * shape.width * channels;
  for (int j = 0; j < shape.columns; ++j) {
    const T* __restrict a = low + x.low[j] * channels;
    const T* __restrict b = low + x.high[j] * channels;
    const T* __restrict c = high + x.low[j] * channels;
    const T* __restrict d = high + x.high[j] * channels;
    T* __restrict target = out + j * channels;
    const A vertical = y.weight[i], horizontal = x.weight[j];
    for (std::int64_t k = 0; k < channels; ++k) {
      target[k] = from_float<T>(mix(mix<A>(to_float(a[k]), to_float(c[k]), vertical),
                                    mix<A>(to_float(b[k]), to_float(d[k]), vertical), horizontal));
    }
  }
}

// sum[k] = sum over the samples touching this input row of share * grad row.
template <class T, class A>
DENSESIAM_HD void gather_rows(const T* __restrict grad, std::int64_t stride, std::int64_t length,
                              const Touching<A>& y, int pixel, A* __restrict sum) {
  std::fill(sum, sum + length, A(0));
  for (int k = y.start[pixel]; k < y.start[pixel + 1]; ++k) {
    const T* __restrict source = grad + y.cell[k] * stride;
    const A share = y.share[k];
    for (std::int64_t j = 0; j < length; ++j) sum[j] += share * to_float(source[j]);
  }
}

// Above this many samples on one column a plain loop over them beats padded slots.
constexpr int kMostSlots = 8;

template <class T, class A>
DENSESIAM_HD void backward_plane(const T* __restrict grad, T* __restrict out, const Shape& shape,
                                 const Touching<A>& y, const Touching<A>& x, A* __restrict row,
                                 A* __restrict sums) {
  const int width = shape.width;
  row[shape.columns] = A(0);  // what padded slots read
  for (int r = 0; r < shape.height; ++r) {
    T* __restrict target = out + std::int64_t(r) * width;
    if (y.start[r] == y.start[r + 1]) {
      for (int k = 0; k < width; ++k) target[k] = from_float<T>(A(0));
      continue;
    }
    gather_rows(grad, shape.columns, shape.columns, y, r, row);
    if (x.most <= kMostSlots) {
      for (int k = 0; k < width; ++k) sums[k] = A(0);
      for (int slot = 0; slot < x.most; ++slot) {
        const int* __restrict cell = x.slot_cell.data() + std::size_t(slot) * width;
        const A* __restrict share = x.slot_share.data() + std::size_t(slot) * width;
        for (int k = 0; k < width; ++k) sums[k] += share[k] * row[cell[k]];
      }
      for (int k = 0; k < width; ++k) target[k] = from_float<T>(sums[k]);
    } else {
      for (int k = 0; k < width; ++k) {
        A sum = 0;
        for (int e = x.start[k]; e < x.start[k + 1]; ++e) sum += x.share[e] * row[x.cell[e]];
        target[k] = from_float<T>(sum);
      }
    }
  }
}

template <class T, class A>
DENSESIAM_HD void backward_row(const T* __restrict grad, T* __restrict out, const Shape& shape,
                               int pixel_row, const Touching<A>& y, const Touching<A>& x,
                               A* __restrict row, A* __restrict sums) {
  const std::int64_t channels = shape.channels;
  if (y.start[pixel_row] == y.start[pixel_row + 1]) {
    for (std::int64_t k = 0; k < shape.width * channels; ++k) out[k] = from_float<T>(A(0));
    return;
  }
  const std::int64_t length = shape.columns * channels;
  gather_rows(grad, length, length, y, pixel_row, row);
  for (int pixel = 0; pixel < shape.width; ++pixel) {
    T* __restrict target = out + pixel * channels;
    for (std::int64_t k = 0; k < channels; ++k) sums[k] = A(0);
    for (int e = x.start[pixel]; e < x.start[pixel + 1]; ++e) {
      const A* __restrict source = row + x.cell[e] * channels;
      const A share = x.share[e];
      for (std::int64_t k = 0; k < channels; ++k) sums[k] += share * source[k];
    }
    for (std::int64_t k = 0; k < channels; ++k) target[k] = from_float<T>(sums[k]);
  }
}

std::int64_t grain(std::int64_t elements) { return std::max<std::int64_t>(1, kGrain / elements); }

template <class T, class Box>
void forward(const Tensor& features, const Tensor& boxes, Tensor& out, const Shape& shape,
             Layout layout) {
  using A = Accumulate<T>;
  using C = Coordinate<T, Box>;
  const T* in = data<T>(features);
  const Box* box_data = data<Box>(boxes);
  T* result = mutable_data<T>(out);
  const std::int64_t map = std::int64_t(shape.height) * shape.width;
  const std::int64_t cells = std::int64_t(shape.rows) * shape.columns;
  const bool planar = layout == Layout::planar;
  const std::int64_t items = shape.batch * (planar ? shape.channels : shape.rows);
  const std::int64_t cost = planar ? cells : shape.columns * shape.channels;
  torch::stable::parallel_for(0, items, grain(cost), [&](std::int64_t begin, std::int64_t end) {
    Taps<A> x, y;
    std::vector<A> row(shape.width);
    std::int64_t current = -1;
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t b = item / (planar ? shape.channels : shape.rows);
      if (b != current) {
        const Box4<C> box = read_box<C>(box_data, b);
        x.build(box.x1, box.x2, shape.columns, shape.width);
        y.build(box.y1, box.y2, shape.rows, shape.height);
        if (!is_finite(box)) std::fill(y.weight.begin(), y.weight.end(), A(NAN));
        current = b;
      }
      vectorised([&](auto) DENSESIAM_INLINE {
        if (planar) {
          forward_plane(in + item * map, result + item * cells, shape, y, x, row.data());
        } else {
          forward_row(in + b * map * shape.channels, result + item * shape.columns * shape.channels,
                      shape, int(item % shape.rows), y, x);
        }
      });
    }
  });
}

template <class T, class Box>
void backward(const Tensor& grad, const Tensor& boxes, Tensor& out, const Shape& shape,
              Layout layout) {
  using A = Accumulate<T>;
  using C = Coordinate<T, Box>;
  const T* in = data<T>(grad);
  const Box* box_data = data<Box>(boxes);
  T* result = mutable_data<T>(out);
  const std::int64_t map = std::int64_t(shape.height) * shape.width;
  const std::int64_t cells = std::int64_t(shape.rows) * shape.columns;
  const bool planar = layout == Layout::planar;
  const std::int64_t items = shape.batch * (planar ? shape.channels : shape.height);
  const std::int64_t cost = planar ? map : shape.width * shape.channels;
  torch::stable::parallel_for(0, items, grain(cost), [&](std::int64_t begin, std::int64_t end) {
    Touching<A> x, y;
    std::vector<A> row((shape.columns + 1) * (planar ? 1 : shape.channels));
    std::vector<A> sums(planar ? shape.width : shape.channels);
    std::int64_t current = -1;
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t b = item / (planar ? shape.channels : shape.height);
      if (b != current) {
        const Box4<C> box = read_box<C>(box_data, b);
        x.build(box.x1, box.x2, shape.columns, shape.width);
        y.build(box.y1, box.y2, shape.rows, shape.height);
        if (!is_finite(box)) std::fill(y.start.begin(), y.start.end(), 0);
        if (planar && x.most <= kMostSlots) x.build_slots(shape.columns, shape.width);
        current = b;
      }
      vectorised([&](auto) DENSESIAM_INLINE {
        if (planar) {
          backward_plane(in + item * cells, result + item * map, shape, y, x, row.data(),
                         sums.data());
        } else {
          backward_row(in + b * cells * shape.channels,
                       result + item * shape.width * shape.channels, shape,
                       int(item % shape.height), y, x, row.data(), sums.data());
        }
      });
    }
  });
}

Tensor overlap_sample(const Tensor& features, const Tensor& boxes, std::vector<std::int64_t> size) {
  check_overlap_sample(features, boxes, size);
  const Layout layout = layout_of(features);
  const Tensor source = in_layout(features, layout);
  const Tensor box = in_layout(boxes, Layout::planar);
  const Shape shape{features.size(0),      features.size(1), int(features.size(2)),
                    int(features.size(3)), int(size[0]),     int(size[1])};
  Tensor out = empty_in_layout({shape.batch, shape.channels, size[0], size[1]}, layout,
                               features.scalar_type(), features);
  if (out.numel() == 0) return out;
  dispatch_box("overlap_sample", box.scalar_type(), [&](auto box_type) {
    dispatch_float("overlap_sample", source.scalar_type(), [&](auto type) {
      forward<typename decltype(type)::type, typename decltype(box_type)::type>(source, box, out,
                                                                                shape, layout);
    });
  });
  return out;
}

Tensor overlap_sample_backward(const Tensor& grad, const Tensor& boxes,
                               std::vector<std::int64_t> size, bool channels_last) {
  const Layout layout = channels_last ? Layout::pixels : Layout::planar;
  const Tensor source = in_layout(grad, layout);
  const Tensor box = in_layout(boxes, Layout::planar);
  const Shape shape{grad.size(0), grad.size(1),      int(size[0]),
                    int(size[1]), int(grad.size(2)), int(grad.size(3))};
  Tensor out = empty_in_layout({shape.batch, shape.channels, size[0], size[1]}, layout,
                               grad.scalar_type(), grad);
  if (out.numel() == 0) return out;
  dispatch_box("overlap_sample_backward", box.scalar_type(), [&](auto box_type) {
    dispatch_float("overlap_sample_backward", source.scalar_type(), [&](auto type) {
      backward<typename decltype(type)::type, typename decltype(box_type)::type>(source, box, out,
                                                                                 shape, layout);
    });
  });
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("overlap_sample", TORCH_BOX(&densesiam::overlap_sample));
  m.impl("overlap_sample_backward", TORCH_BOX(&densesiam::overlap_sample_backward));
}
