// label_map on the CPU: bilinear resizing and argmax over classes, a few rows of the result at a
// time.
//
// Columns first: a row of the coarse map, all classes of it, is resized to the result's width once
// and serves every row of the result between it and its neighbour. What remains for a pixel is one
// interpolation and one comparison per class, and both vectorise over pixels.
#include <vector>

#include "../args.h"
#include "../geometry.h"
#include "support/simd.h"
#include "support/softmax.h"

namespace densesiam {
namespace {

// Rows of the result computed by one thread in one go; two coarse rows are resized anew for each.
constexpr int kBand = 32;

struct Shape {
  std::int64_t classes;
  int height, width, rows, columns;
};

// The taps of all columns, or rows, of the result.
template <class A>
struct Axis {
  std::vector<int> low, high;
  std::vector<A> weight;

  Axis(int count, int extent) : low(count), high(count), weight(count) {
    for (int j = 0; j < count; ++j) {
      const Tap<A> tap = cell_tap<A>(A(0), A(1), j, count, extent);
      low[j] = tap.low;
      high[j] = tap.high;
      weight[j] = tap.weight;
    }
  }
};

// One coarse row resized to the result's width: (classes, columns).
template <int Bytes, class T, class A>
DENSESIAM_HD void resize_row(const T* image,  // [K, h, w]
                             Layout layout, const Shape& shape, int row, const Axis<A>& taps,
                             A* coarse,             // [K, w]
                             A* __restrict resized  // [K, W]
) {
  const std::int64_t K = shape.classes;
  if (layout == Layout::pixels) {
    transpose<Bytes>(image + std::int64_t(row) * shape.width * K, K, shape.width, K, coarse,
                     shape.width);
  } else {
    for (std::int64_t k = 0; k < K; ++k) {
      const T* __restrict from = image + (k * shape.height + row) * shape.width;
      for (int i = 0; i < shape.width; ++i) coarse[k * shape.width + i] = to_float(from[i]);
    }
  }
  const int* __restrict low = taps.low.data();
  const int* __restrict high = taps.high.data();
  const A* __restrict weight = taps.weight.data();
  for (std::int64_t k = 0; k < K; ++k) {
    const A* __restrict from = coarse + k * shape.width;
    A* __restrict to = resized + k * shape.columns;
#pragma omp simd
    for (int j = 0; j < shape.columns; ++j) {
      to[j] = mix(from[low[j]], from[high[j]], weight[j]);
    }
  }
}

template <class A>
DENSESIAM_HD void label_row(const A* upper,                                     // [K, W]
                            const A* lower,                                     // [K, W]
                            A weight, const Shape& shape, std::int64_t* labels  // [W]
) {
  A greatest[kTile];
  std::int32_t index[kTile];
  for (int start = 0; start < shape.columns; start += kTile) {
    const int count = std::min(kTile, shape.columns - start);
    for (std::int64_t k = 0; k < shape.classes; ++k) {
      const A* __restrict a = upper + k * shape.columns + start;
      const A* __restrict b = lower + k * shape.columns + start;
      if (k == 0) {
#pragma omp simd
        for (int i = 0; i < count; ++i) {
          greatest[i] = mix(a[i], b[i], weight);
          index[i] = 0;
        }
        continue;
      }
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        take_greater(mix(a[i], b[i], weight), std::int32_t(k), greatest[i], index[i]);
      }
    }
    for (int i = 0; i < count; ++i) labels[start + i] = index[i];
  }
}

template <class T>
void label(const T* logits,  // [B, K, h, w]
           Layout layout, std::int64_t batch, const Shape& shape, std::int64_t* labels  // [B, H, W]
) {
  using A = Accumulate<T>;
  const std::int64_t K = shape.classes;
  const std::int64_t bands = ceil_divide(shape.rows, kBand);
  const Axis<A> x(shape.columns, shape.width), y(shape.rows, shape.height);
  const std::int64_t cost = K * shape.columns * std::min(kBand, shape.rows);
  parallel_blocks(batch * bands, cost, [&](std::int64_t begin, std::int64_t end) {
    Scratch<A> coarse(K * shape.width);
    // Even coarse rows go to the first buffer, odd ones to the second: two neighbours never clash.
    Scratch<A> even(K * shape.columns), odd(K * shape.columns);
    A* const resized[2] = {even.data(), odd.data()};
    for (std::int64_t block = begin; block < end; ++block) {
      const T* image = logits + block / bands * K * shape.height * shape.width;
      const int first = int(block % bands) * kBand, last = std::min(shape.rows, first + kBand);
      int held[2] = {-1, -1};
      vectorised([&](auto width) DENSESIAM_INLINE {
        const auto hold = [&](int row) DENSESIAM_INLINE {
          if (held[row & 1] != row) {
            resize_row<width()>(image, layout, shape, row, x, coarse.data(), resized[row & 1]);
            held[row & 1] = row;
          }
          return static_cast<const A*>(resized[row & 1]);
        };
        for (int i = first; i < last; ++i) {
          const A* upper = hold(y.low[i]);
          const A* lower = hold(y.high[i]);
          label_row(upper, lower, y.weight[i], shape,
                    labels + (block / bands * shape.rows + i) * shape.columns);
        }
      });
    }
  });
}

Tensor label_map(const Tensor& logits, std::vector<std::int64_t> size) {
  const char* op = "label_map";
  check_map(op, "logits", logits);
  check(logits.size(1) > 0, op, ": logits must have at least one class, got shape ",
        shape_of(logits));
  check_size(op, size);
  const Layout layout = layout_of(logits);
  const Tensor source = in_layout(logits, layout);
  const Shape shape{logits.size(1), int(logits.size(2)), int(logits.size(3)), int(size[0]),
                    int(size[1])};
  Tensor labels =
      empty_in_layout({logits.size(0), size[0], size[1]}, Layout::planar, ScalarType::Long, logits);
  if (labels.numel() == 0) return labels;
  dispatch_float(op, logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    label(data<T>(source), layout, logits.size(0), shape, mutable_data<std::int64_t>(labels));
  });
  return labels;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) { m.impl("label_map", TORCH_BOX(&densesiam::label_map)); }
