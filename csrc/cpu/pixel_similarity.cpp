// pixel_similarity on the CPU: one pass over p and z that keeps two numbers a pixel, and a backward
// pass that recomputes the rest from them.
#include <numeric>
#include <optional>
#include <vector>

#include "support/simd.h"
#include "support/similarity.h"

namespace densesiam {
namespace {

template <class T>
void forward(const T* p, const T* z, Weights<Accumulate<T>> weights, Kind kind, Layout layout,
             const Tiling& tiling, Accumulate<T>* statistics, Accumulate<T>* losses,
             Accumulate<T>* mean) {
  using A = Accumulate<T>;
  const std::int64_t C = tiling.channels, P = tiling.pixels;
  std::vector<double> partial(mean ? tiling.tiles() : 0);
  parallel_blocks(tiling.tiles(), C * kTile, [&](std::int64_t begin, std::int64_t end) {
    Scratch<A> p_scratch(C * kTileStride), z_scratch(C * kTileStride);
    TileLosses<A> out;
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiling.image(tile), start = tiling.start(tile);
      const int count = tiling.count(tile);
      const A weight = weights[image];
      if (weight == A(0)) {
        out.clear(count);
      } else {
        vectorised([&](auto width) DENSESIAM_INLINE {
          const T* p_image = p + image * C * P;
          const T* z_image = z + image * C * P;
          similarity_tile<A>(
              kind, load_tile<width()>(p_image, C, P, layout, start, count, p_scratch.data()),
              load_tile<width()>(z_image, C, P, layout, start, count, z_scratch.data()), C, count,
              out);
          for (int i = 0; i < count; ++i) out.loss[i] *= weight;
        });
      }
      std::copy_n(out.first, count, statistics + image * 2 * P + start);
      std::copy_n(out.second, count, statistics + (image * 2 + 1) * P + start);
      if (losses) std::copy_n(out.loss, count, losses + image * P + start);
      if (mean) partial[tile] = std::accumulate(out.loss, out.loss + count, 0.0);
    }
  });
  if (mean) {
    *mean =
        A(std::accumulate(partial.begin(), partial.end(), 0.0) * double(weights.mean_factor(P)));
  }
}

// grad p of one tile; grad holds the upstream gradient of each pixel, weight included.
template <int Bytes, class T, class Gradient>
DENSESIAM_HD void backward_tile(const T* p, const T* z, T* out, Layout layout, const Tiling& tiling,
                                std::int64_t start, int count,
                                const Accumulate<T>* __restrict first,
                                const Accumulate<T>* __restrict second,
                                const Accumulate<T>* __restrict grad, const Gradient& gradient) {
  using A = Accumulate<T>;
  if (layout == Layout::planar) {
    gradient_of_rows(p + start, z + start, out + start, tiling.pixels, tiling.channels, count,
                     first, second, grad, gradient);
    return;
  }
  for (int i = 0; i < count; ++i) {
    const T* __restrict a = p + (start + i) * tiling.channels;
    const T* __restrict b = z + (start + i) * tiling.channels;
    T* __restrict target = out + (start + i) * tiling.channels;
    for_groups<Bytes / int(sizeof(A))>(
        tiling.channels, [&](std::int64_t from, auto length) DENSESIAM_INLINE {
#pragma omp simd
          for (int c = 0; c < length(); ++c) {
            target[from + c] = from_float<T>(gradient(
                A(to_float(a[from + c])), A(to_float(b[from + c])), first[i], second[i], grad[i]));
          }
        });
  }
}

template <class T>
void backward(const Accumulate<T>* grad, bool mean, const T* p, const T* z,
              Weights<Accumulate<T>> weights, const Accumulate<T>* statistics, Kind kind,
              Layout layout, const Tiling& tiling, T* out) {
  using A = Accumulate<T>;
  const std::int64_t C = tiling.channels, P = tiling.pixels;
  const A mean_grad = mean ? *grad * weights.mean_factor(P) : A(0);
  parallel_blocks(tiling.tiles(), C * kTile, [&](std::int64_t begin, std::int64_t end) {
    A scale[kTile];
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiling.image(tile), start = tiling.start(tile);
      const int count = tiling.count(tile);
      const A weight = weights[image];
      T* target = out + image * C * P;
      if (weight == A(0)) {
        const std::int64_t runs = layout == Layout::planar ? C : 1;
        const std::int64_t length = layout == Layout::planar ? count : count * C;
        const std::int64_t first = layout == Layout::planar ? start : start * C;
        for (std::int64_t run = 0; run < runs; ++run) {
          std::fill_n(target + run * P + first, length, from_float<T>(A(0)));
        }
        continue;
      }
      for (int i = 0; i < count; ++i) {
        scale[i] = weight * (mean ? mean_grad : grad[image * P + start + i]);
      }
      const A* first = statistics + image * 2 * P + start;
      vectorised([&](auto width) DENSESIAM_INLINE {
        with_gradient<A>(kind, [&](const auto& gradient) DENSESIAM_INLINE {
          backward_tile<width()>(p + image * C * P, z + image * C * P, target, layout, tiling,
                                 start, count, first, first + P, scale, gradient);
        });
      });
    }
  });
}

Tiling tiling_of(const Tensor& p) { return {p.size(0), p.size(1), p.size(2)}; }

void check_pair(const char* op, const Tensor& p, const Tensor& z) {
  check(p.dim() == 3 && z.dim() == 3 && shape_of(p) == shape_of(z), op,
        ": p and z must be (B, C, P) of one shape, got ", shape_of(p), " and ", shape_of(z));
}

std::tuple<Tensor, Tensor> pixel_similarity(const Tensor& p, const Tensor& z,
                                            std::optional<Tensor> weight, std::string kind,
                                            std::string reduction) {
  const char* op = "pixel_similarity";
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const Kind which = kind_of(op, kind);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const Tiling tiling = tiling_of(p);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  Tensor loss = torch::stable::new_empty(
      p,
      mean ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{tiling.batch, tiling.pixels},
      dtype);
  Tensor statistics = torch::stable::new_empty(p, {tiling.batch, 2, tiling.pixels}, dtype);
  const std::optional<Tensor> weights = checked_weight(op, weight, tiling.batch, p.scalar_type());
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    A* result = mutable_data<A>(loss);
    forward<T>(data<T>(p_source), data<T>(z_source), {weights, tiling.batch}, which,
               kernel_layout(layout, tiling), tiling, mutable_data<A>(statistics),
               mean ? nullptr : result, mean ? result : nullptr);
  });
  return {loss, statistics};
}

Tensor pixel_similarity_backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                                 std::optional<Tensor> weight, const Tensor& statistics,
                                 std::string kind, std::string reduction) {
  const char* op = "pixel_similarity_backward";
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const Kind which = kind_of(op, kind);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const Tensor upstream = in_layout(grad, Layout::planar);
  const Tensor kept = in_layout(statistics, Layout::planar);
  const Tiling tiling = tiling_of(p);
  const std::optional<Tensor> weights = checked_weight(op, weight, tiling.batch, p.scalar_type());
  Tensor out =
      empty_in_layout({tiling.batch, tiling.channels, tiling.pixels}, layout, p.scalar_type(), p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    backward<T>(data<A>(upstream), mean, data<T>(p_source), data<T>(z_source),
                {weights, tiling.batch}, data<A>(kept), which, kernel_layout(layout, tiling),
                tiling, mutable_data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("pixel_similarity", TORCH_BOX(&densesiam::pixel_similarity));
  m.impl("pixel_similarity_backward", TORCH_BOX(&densesiam::pixel_similarity_backward));
}
