// Any loss of losses.h at every pixel, on the CPU: one pass over p and z that keeps two numbers per
// pixel, and a backward pass that recomputes the rest from them.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "../args.h"
#include "losses.h"
#include "support/simd.h"

namespace densesiam {

// dp of a tile whose rows are `stride` apart in p, z and out alike; out may be p.
template <class Loss, class T>
DENSESIAM_HD void gradient_of_rows(const T* p,  // [C, count]
                                   const T* z,  // [C, count]
                                   T* out,      // [C, count]
                                   std::int64_t stride, std::int64_t channels, int count,
                                   const Accumulate<T>* __restrict first,   // [count]
                                   const Accumulate<T>* __restrict second,  // [count]
                                   const Accumulate<T>* __restrict grad     // [count]
) {
  using A = Accumulate<T>;
  for (std::int64_t c = 0; c < channels; ++c) {
    const T* a = p + c * stride;
    const T* b = z + c * stride;
    T* target = out + c * stride;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      target[i] = from_float<T>(
          Loss::gradient(A(to_float(a[i])), A(to_float(b[i])), first[i], second[i], grad[i]));
    }
  }
}

// dp of pixels whose channels lie next to each other, in place of p.
template <class Loss, class A>
DENSESIAM_HD void gradient_of_pixels(A* p,        // [count, C]
                                     const A* z,  // [count, C]
                                     std::int64_t channels, int count,
                                     const A* first,  // [count]
                                     const A* second  // [count]
) {
  for (int i = 0; i < count; ++i) {
    const A one = first[i], two = second[i];
    A* a = p + i * channels;
    const A* b = z + i * channels;
#pragma omp simd
    for (std::int64_t c = 0; c < channels; ++c) a[c] = Loss::gradient(a[c], b[c], one, two, A(1));
  }
}

// What the losses of each image are multiplied by: weights (B,) as checked_weight gives them, those
// of a mean in_units; 1 where none are given.
template <class A>
class Weights {
 public:
  Weights(const std::optional<Tensor>& weight, std::int64_t batch, bool mean) : batch_(batch) {
    if (!weight) return;
    if (weight->scalar_type() == ScalarType::Bool) {
      convert(data<std::uint8_t>(*weight), [](std::uint8_t given) { return A(given != 0); });
    } else {
      dispatch_float("weight", weight->scalar_type(), [&](auto type) {
        using W = typename decltype(type)::type;
        if (std::is_same_v<W, A> && !mean) {
          values_ = data<A>(*weight);
        } else {
          convert(data<W>(*weight), [](W given) { return A(to_float(given)); });
        }
      });
    }
    if (!mean) return;
    A largest = A(0);
    for (const A value : converted_) largest = std::max(largest, std::abs(value));
    const A unit = inverse_unit(largest);
    for (A& value : converted_) value = in_units(value, unit);
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  A operator[](std::int64_t image) const { return values_ ? values_[image] : A(1); }

  // The sum of weights over all pixels.
  double total(std::int64_t pixels) const {
    const double sum = values_ ? std::accumulate(values_, values_ + batch_, 0.0) : double(batch_);
    return sum * double(pixels);
  }
  // 1 / total, 0 where that is 0: what makes a sum a mean.
  A mean_factor(std::int64_t pixels) const {
    const double sum = total(pixels);
    return A(sum == 0 ? 0 : 1 / sum);
  }

 private:
  template <class W, class Convert>
  void convert(const W* given,  // [B]
               const Convert& one) {
    converted_.resize(batch_);
    std::transform(given, given + batch_, converted_.begin(), one);
    values_ = converted_.data();
  }

  std::int64_t batch_;
  std::vector<A> converted_;
  const A* values_ = nullptr;  // (B,): the tensor's or converted_, or null
};

// Whether a loss reads pixels whose channels lie next to each other without a tile, see losses.h.
template <class Loss, class T, class = void>
constexpr bool kTakesPixels = false;
template <class Loss, class T>
constexpr bool kTakesPixels<Loss, T,
                            std::void_t<decltype(Loss::template pixels<16>(
                                std::declval<const T*>(), std::declval<const T*>(), std::int64_t(),
                                int(), std::declval<TileLosses<Accumulate<T>>&>()))>> = true;

// The sum of a tile's losses.
template <class A>
DENSESIAM_HD double sum_of(const A* values,  // [count]
                           int count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < count; ++i) sum += double(values[i]);
  return sum;
}

// Pixels a tile where channels lie side by side: those of p and z stay in the L2 cache.
constexpr std::int64_t kTileElements = 32768;
inline int pixels_a_tile(std::int64_t channels) {
  return int(std::clamp<std::int64_t>(kTileElements / channels, 16, kTile));
}

template <class Loss, class T>
void losses_of_tiles(const T* p,                                                      // [B, C, P]
                     const T* z,                                                      // [B, C, P]
                     const Weights<Accumulate<T>>& weights,                           // [B]
                     Layout layout, const Tiling& images, Accumulate<T>* statistics,  // [B, 2, P]
                     Accumulate<T>* losses,  // [B, P] or null
                     Accumulate<T>* mean     // [] or null
) {
  using A = Accumulate<T>;
  const std::int64_t C = images.channels, P = images.pixels;
  const bool direct = kTakesPixels<Loss, T> && layout == Layout::pixels && C >= kFewChannels;
  // Images of one pixel lie side by side, as the pixels of one image do: tiles go across them.
  const bool vectors = P == 1;
  const Tiling tiling = vectors ? Tiling{1, C, images.batch, pixels_a_tile(C)} : images;
  std::vector<double> partial(mean ? tiling.tiles() : 0);
  parallel_blocks(tiling.tiles(), C * tiling.length, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t elements = direct ? 0 : C * kTileStride;
    Scratch<A> p_scratch(elements), z_scratch(elements);
    TileLosses<A> out;
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiling.image(tile), start = tiling.start(tile);
      const int count = tiling.count(tile);
      const A weight = vectors ? A(1) : weights[image];
      if (weight == A(0)) {
        out.clear(count);
      } else {
        vectorised([&](auto width) DENSESIAM_INLINE {
          const T* p_image = p + image * C * P;
          const T* z_image = z + image * C * P;
          if (direct) {
            if constexpr (kTakesPixels<Loss, T>) {
              const std::int64_t first = start * C;
              Loss::template pixels<width()>(p_image + first, z_image + first, C, count, out);
            }
          } else {
            Loss::template tile<width(), A>(load_tile<width()>(p_image, C, tiling.pixels, layout,
                                                               start, count, p_scratch.data()),
                                            load_tile<width()>(z_image, C, tiling.pixels, layout,
                                                               start, count, z_scratch.data()),
                                            C, count, out);
          }
          if (vectors) {
            for (int i = 0; i < count; ++i) out.weigh(i, weights[start + i]);
          } else {
            for (int i = 0; i < count; ++i) out.loss[i] *= weight;
          }
          if (mean) partial[tile] = sum_of(out.loss, count);
        });
      }
      if (vectors) {
        for (int i = 0; i < count; ++i) {
          statistics[2 * (start + i)] = out.first[i];
          statistics[2 * (start + i) + 1] = out.second[i];
        }
      } else {
        std::copy_n(out.first, count, statistics + image * 2 * P + start);
        std::copy_n(out.second, count, statistics + (image * 2 + 1) * P + start);
      }
      if (losses) std::copy_n(out.loss, count, losses + image * P + start);
    }
  });
  if (mean) {
    *mean =
        A(std::accumulate(partial.begin(), partial.end(), 0.0) * double(weights.mean_factor(P)));
  }
}

// grad p of one tile; grad holds the upstream gradient of each pixel, weight included.
template <class Loss, int Bytes, class T>
DENSESIAM_HD void backward_tile(const T* p,  // [C, P]
                                const T* z,  // [C, P]
                                T* out,      // [C, P]
                                Layout layout, const Tiling& tiling, std::int64_t start, int count,
                                const Accumulate<T>* __restrict first,   // [count]
                                const Accumulate<T>* __restrict second,  // [count]
                                const Accumulate<T>* __restrict grad     // [count]
) {
  using A = Accumulate<T>;
  if (layout == Layout::planar) {
    gradient_of_rows<Loss>(p + start, z + start, out + start, tiling.pixels, tiling.channels, count,
                           first, second, grad);
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
            target[from + c] = from_float<T>(Loss::gradient(
                A(to_float(a[from + c])), A(to_float(b[from + c])), first[i], second[i], grad[i]));
          }
        });
  }
}

// Pixels a tile of the backward pass, which keeps nothing but three numbers of each: the longer its
// rows, the better memory streams.
constexpr int kGradientTile = 2048;

template <class Loss, class T>
void gradients_of_tiles(const Accumulate<T>* grad,                   // [] if mean, else [B, P]
                        bool mean, const T* p,                       // [B, C, P]
                        const T* z,                                  // [B, C, P]
                        const Weights<Accumulate<T>>& weights,       // [B]
                        const Accumulate<T>* statistics,             // [B, 2, P]
                        Layout layout, const Tiling& tiling, T* out  // [B, C, P]
) {
  using A = Accumulate<T>;
  const std::int64_t C = tiling.channels, P = tiling.pixels;
  const A mean_grad = mean ? *grad * weights.mean_factor(P) : A(0);
  parallel_blocks(tiling.tiles(), C * std::min<std::int64_t>(P, tiling.length),
                  [&](std::int64_t begin, std::int64_t end) {
                    A scale[kGradientTile];
                    for (std::int64_t tile = begin; tile < end; ++tile) {
                      const std::int64_t image = tiling.image(tile), start = tiling.start(tile);
                      const int count = tiling.count(tile);
                      const A weight = weights[image];
                      T* target = out + image * C * P;
                      if (weight == A(0)) {
                        zero_tile(target, C, P, layout, start, count);
                        continue;
                      }
                      for (int i = 0; i < count; ++i) {
                        scale[i] = weight * (mean ? mean_grad : grad[image * P + start + i]);
                      }
                      const A* first = statistics + image * 2 * P + start;
                      vectorised([&](auto width) DENSESIAM_INLINE {
                        backward_tile<Loss, width()>(p + image * C * P, z + image * C * P, target,
                                                     layout, tiling, start, count, first, first + P,
                                                     scale);
                      });
                    }
                  });
}

inline Tiling tiling_of(const Tensor& p, int length = kTile) {
  return {p.size(0), p.size(1), p.size(2), length};
}

// The loss of p (B, C, P) to z (B, C, P): its mean (), or that of each pixel (B, P), times the
// image's weight (B,); and the statistics (B, 2, P).
template <class Loss>
std::tuple<Tensor, Tensor> pixel_loss(const char* op, const Tensor& p, const Tensor& z,
                                      const std::optional<Tensor>& weight,
                                      const std::string& reduction) {
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const Tiling tiling = tiling_of(p);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  Tensor loss = empty_in_layout(mean ? Sizes{} : Sizes{tiling.batch, tiling.pixels}, Layout::planar,
                                dtype, p);
  Tensor statistics = empty_in_layout({tiling.batch, 2, tiling.pixels}, Layout::planar, dtype, p);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    A* result = mutable_data<A>(loss);
    losses_of_tiles<Loss, T>(data<T>(p_source), data<T>(z_source), {weights, tiling.batch, mean},
                             kernel_layout(layout, tiling), tiling, mutable_data<A>(statistics),
                             mean ? nullptr : result, mean ? result : nullptr);
  });
  return {loss, statistics};
}

// dp (B, C, P) in p's layout; grad is (), or (B, P), as the loss.
template <class Loss>
Tensor pixel_loss_backward(const char* op, const Tensor& grad, const Tensor& p, const Tensor& z,
                           const std::optional<Tensor>& weight, const std::string& reduction,
                           const Tensor& statistics) {
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const Tensor upstream = checked_grad(op, grad, mean, {p.size(0), p.size(2)}, p);
  const Tensor kept = checked_kept(op, "statistics", statistics, accumulate_type(p.scalar_type()),
                                   {p.size(0), 2, p.size(2)}, p);
  const Tiling tiling = tiling_of(p, kGradientTile);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  Tensor out =
      empty_in_layout({tiling.batch, tiling.channels, tiling.pixels}, layout, p.scalar_type(), p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    gradients_of_tiles<Loss, T>(data<A>(upstream), mean, data<T>(p_source), data<T>(z_source),
                                {weights, tiling.batch, mean}, data<A>(kept),
                                kernel_layout(layout, tiling), tiling, mutable_data<T>(out));
  });
  return out;
}

// The operators of a loss that is an operation of its own, `Loss::kOp`.
template <class Loss>
struct PixelLossOperators {
  static std::tuple<Tensor, Tensor> forward(const Tensor& p, const Tensor& z,
                                            std::optional<Tensor> weight, std::string reduction) {
    return pixel_loss<Loss>(Loss::kOp, p, z, weight, reduction);
  }
  static Tensor backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                         std::optional<Tensor> weight, std::string reduction,
                         const Tensor& statistics) {
    return pixel_loss_backward<Loss>(Loss::kOp, grad, p, z, weight, reduction, statistics);
  }
};

}  // namespace densesiam
