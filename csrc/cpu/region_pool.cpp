// region_pool on the CPU: softmax and matrix products on tiles, so that the mask of a tile is used
// while it is in the cache and never stored whole.
#include <numeric>
#include <optional>
#include <vector>

#include "../args.h"
#include "support/matmul.h"
#include "support/softmax.h"

namespace densesiam {
namespace {

// An image is cut into as many ranges of tiles as make this many of the whole batch; each sums into
// memory of its own, and these are added up in order.
constexpr std::int64_t kRanges = 64;

struct Maps {
  Tiling tiling;  // of the features: channels is C
  std::int64_t regions;
  Layout features_layout, logits_layout;
};

// The mask of one tile, from logits x, as exp(x - greatest) / sum. Returns log sum exp.
template <class A>
DENSESIAM_HD void softmax_tile(Tile<const A> x,                           // [N, count]
                               std::int64_t regions, int count, A* mask,  // [N, count]
                               A* __restrict log_sum                      // [count]
) {
  A greatest[kTile], sum[kTile];
  greatest_of_rows(x, regions, count, greatest);
  for (int i = 0; i < count; ++i) sum[i] = A(0);
  for (std::int64_t n = 0; n < regions; ++n) {
    const A* __restrict row = x.row(n);
    A* __restrict out = mask + n * kTileStride;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      out[i] = exp_of_negative(row[i] - greatest[i]);
      sum[i] += out[i];
    }
  }
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    log_sum[i] = greatest[i] + log_of_normal(sum[i]);
    sum[i] = A(1) / sum[i];
  }
  for (std::int64_t n = 0; n < regions; ++n) {
    A* __restrict out = mask + n * kTileStride;
#pragma omp simd
    for (int i = 0; i < count; ++i) out[i] *= sum[i];
  }
}

// The mask again, from the log sums that forward kept.
template <class A>
DENSESIAM_HD void recompute_mask(Tile<const A> x,  // [N, count]
                                 std::int64_t regions, int count,
                                 const A* __restrict log_sum,  // [count]
                                 A* mask                       // [N, count]
) {
  for (std::int64_t n = 0; n < regions; ++n) {
    const A* __restrict row = x.row(n);
    A* __restrict out = mask + n * kTileStride;
#pragma omp simd
    for (int i = 0; i < count; ++i) out[i] = exp_of_negative(row[i] - log_sum[i]);
  }
}

// Features of a tile with channels side by side: (count, C), `stride` apart.
template <int Bytes, class T>
DENSESIAM_HD const Accumulate<T>* load_feature_rows(const T* image,  // [C, P]
                                                    const Maps& maps, std::int64_t start, int count,
                                                    Accumulate<T>* memory,  // [count, C]
                                                    std::int64_t& stride) {
  using A = Accumulate<T>;
  const std::int64_t C = maps.tiling.channels;
  if (maps.features_layout == Layout::planar) {
    stride = C + 16;  // see kTileStride
    transpose<Bytes>(image + start, maps.tiling.pixels, C, count, memory, stride);
    return memory;
  }
  const T* rows = image + start * C;
  stride = C;
  if constexpr (std::is_same_v<T, A>) {
    return rows;
  } else {
    for (std::int64_t i = 0; i < count * C; ++i) memory[i] = to_float(rows[i]);
    return memory;
  }
}

template <class T>
void forward(const T* features,                        // [B, C, P]
             const T* logits,                          // [B, N, P]
             const Maps& maps, Accumulate<T>* pooled,  // [B, N, C]
             Accumulate<T>* mass,                      // [B, N]
             Accumulate<T>* log_sums                   // [B, P]
) {
  using A = Accumulate<T>;
  const Tiling& tiling = maps.tiling;
  const std::int64_t B = tiling.batch, C = tiling.channels, N = maps.regions, P = tiling.pixels;
  const std::int64_t tiles = tiling.tiles_per_image;
  const std::int64_t ranges =
      std::max<std::int64_t>(1, std::min(tiles, kRanges / std::max<std::int64_t>(1, B)));
  std::vector<A> partial(B * ranges * N * (C + 1));
  const std::int64_t cost = ceil_divide(tiles, ranges) * kTile * N * (C + 8);
  parallel_blocks(B * ranges, cost, [&](std::int64_t begin, std::int64_t end) {
    Scratch<A> logit_memory(N * kTileStride), mask(N * kTileStride);
    Scratch<A> feature_memory(kTile * (C + 16));
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t image = block / ranges, range = block % ranges;
      A* const sums = partial.data() + block * N * (C + 1);
      A* const masses = sums + N * C;
      for (std::int64_t t = tiles * range / ranges; t < tiles * (range + 1) / ranges; ++t) {
        const std::int64_t start = t * kTile;
        const int count = int(std::min<std::int64_t>(kTile, P - start));
        const A* rows = nullptr;
        std::int64_t stride = 0;
        vectorised([&](auto width) DENSESIAM_INLINE {
          softmax_tile<A>(load_tile<width()>(logits + image * N * P, N, P, maps.logits_layout,
                                             start, count, logit_memory.data()),
                          N, count, mask.data(), log_sums + image * P + start);
          for (std::int64_t n = 0; n < N; ++n) {
            const A* __restrict row = mask.data() + n * kTileStride;
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < count; ++i) sum += row[i];
            masses[n] += sum;
          }
          rows = load_feature_rows<width()>(features + image * C * P, maps, start, count,
                                            feature_memory.data(), stride);
        });
        multiply<A>(N, C, count, {mask.data(), kTileStride, 1}, rows, stride, sums, C, true);
      }
    }
  });
  parallel_blocks(B, ranges * N * (C + 1), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t image = begin; image < end; ++image) {
      const A* sums = partial.data() + image * ranges * N * (C + 1);
      std::copy_n(sums, N * C, pooled + image * N * C);
      std::copy_n(sums + N * C, N, mass + image * N);
      for (std::int64_t range = 1; range < ranges; ++range) {
        sums += N * (C + 1);
        for (std::int64_t i = 0; i < N * C; ++i) pooled[image * N * C + i] += sums[i];
        for (std::int64_t n = 0; n < N; ++n) mass[image * N + n] += sums[N * C + n];
      }
    }
  });
}

// With mask m and upstream gradients G of the sums and g of the masses:
//   d features[c, p] = sum over n of G[n, c] m[n, p]
//   d mask[n, p] = sum over c of G[n, c] features[c, p] + g[n]
//   d logits[n, p] = m[n, p] (d mask[n, p] - sum over n' of m[n', p] d mask[n', p])
// A gradient that nobody needs is null.
template <class T>
void backward(const Accumulate<T>* grad,           // [B, N, C]
              const Accumulate<T>* grad_mass,      // [B, N] or null
              const T* features,                   // [B, C, P]
              const T* logits,                     // [B, N, P]
              const Accumulate<T>* log_sums,       // [B, P]
              const Maps& maps, T* grad_features,  // [B, C, P] or null
              T* grad_logits                       // [B, N, P] or null
) {
  using A = Accumulate<T>;
  const Tiling& tiling = maps.tiling;
  const std::int64_t C = tiling.channels, N = maps.regions, P = tiling.pixels;
  parallel_blocks(
      tiling.tiles(), kTile * N * 2 * (C + 8), [&](std::int64_t begin, std::int64_t end) {
        Scratch<A> logit_memory(N * kTileStride), mask(N * kTileStride), grad_mask(N * kTileStride);
        Scratch<A> feature_memory(std::max(C * kTileStride, kTile * C));
        A dot[kTile];
        for (std::int64_t tile = begin; tile < end; ++tile) {
          const std::int64_t image = tiling.image(tile), start = tiling.start(tile);
          const int count = tiling.count(tile);
          const A* G = grad + image * N * C;
          vectorised([&](auto width) DENSESIAM_INLINE {
            recompute_mask<A>(load_tile<width()>(logits + image * N * P, N, P, maps.logits_layout,
                                                 start, count, logit_memory.data()),
                              N, count, log_sums + image * P + start, mask.data());
            if (grad_logits) {
              copy_tile<width()>(features + image * C * P, C, P, maps.features_layout, start, count,
                                 feature_memory.data());
            }
          });
          if (grad_logits) {
            multiply<A>(N, count, C, {G, C, 1}, feature_memory.data(), kTileStride,
                        grad_mask.data(), kTileStride, false);
            vectorised([&](auto width) DENSESIAM_INLINE {
              std::fill_n(dot, count, A(0));
              for (std::int64_t n = 0; n < N; ++n) {
                const A* __restrict m = mask.data() + n * kTileStride;
                A* __restrict d = grad_mask.data() + n * kTileStride;
                const A g = grad_mass ? grad_mass[image * N + n] : A(0);
#pragma omp simd
                for (int i = 0; i < count; ++i) {
                  d[i] += g;
                  dot[i] += m[i] * d[i];
                }
              }
              for (std::int64_t n = 0; n < N; ++n) {
                const A* __restrict m = mask.data() + n * kTileStride;
                A* __restrict d = grad_mask.data() + n * kTileStride;
#pragma omp simd
                for (int i = 0; i < count; ++i) d[i] = m[i] * (d[i] - dot[i]);
              }
              store_tile<width()>(grad_mask.data(), N, P, maps.logits_layout, start, count,
                                  grad_logits + image * N * P);
            });
          }
          if (grad_features) {
            T* const target = grad_features + image * C * P;
            const bool planar = maps.features_layout == Layout::planar;
            // The product is written where it belongs, if it needs no conversion.
            A* out = feature_memory.data();
            std::int64_t out_row = planar ? kTileStride : C;
            if constexpr (std::is_same_v<T, A>) {
              out = target + (planar ? start : start * C);
              out_row = planar ? P : C;
            }
            if (planar) {
              multiply<A>(C, count, N, {G, 1, C}, mask.data(), kTileStride, out, out_row, false);
            } else {
              multiply<A>(count, C, N, {mask.data(), 1, kTileStride}, G, C, out, out_row, false);
            }
            if constexpr (!std::is_same_v<T, A>) {
              vectorised([&](auto width) DENSESIAM_INLINE {
                if (planar) {
                  store_tile<width()>(out, C, P, Layout::planar, start, count, target);
                } else {
                  T* __restrict to = target + start * C;
                  for (std::int64_t i = 0; i < count * C; ++i) to[i] = from_float<T>(out[i]);
                }
              });
            }
          }
        }
      });
}

Maps maps_of(const Tensor& features, const Tensor& logits) {
  return {{features.size(0), features.size(1), features.size(2)},
          logits.size(1),
          layout_of(features),
          layout_of(logits)};
}

std::tuple<Tensor, Tensor, Tensor> region_pool(const Tensor& features, const Tensor& logits) {
  const char* op = "region_pool";
  check_regions(op, features, logits);
  const Maps maps = maps_of(features, logits);
  const Tensor f = in_layout(features, maps.features_layout);
  const Tensor x = in_layout(logits, maps.logits_layout);
  const ScalarType dtype = accumulate_type(features.scalar_type());
  const std::int64_t B = maps.tiling.batch, N = maps.regions;
  const auto make = [&](const Sizes& sizes) {
    return empty_in_layout(sizes, Layout::planar, dtype, features);
  };
  Tensor pooled = make({B, N, maps.tiling.channels}), mass = make({B, N});
  Tensor log_sum = make({B, maps.tiling.pixels});
  dispatch_float(op, features.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    forward(data<T>(f), data<T>(x), maps, mutable_data<A>(pooled), mutable_data<A>(mass),
            mutable_data<A>(log_sum));
  });
  return {pooled, mass, log_sum};
}

std::tuple<Tensor, Tensor> region_pool_backward(const Tensor& grad, std::optional<Tensor> grad_mass,
                                                const Tensor& features, const Tensor& logits,
                                                const Tensor& log_sum, bool need_features,
                                                bool need_logits) {
  const char* op = "region_pool_backward";
  check_regions(op, features, logits);
  const Maps maps = maps_of(features, logits);
  const Tensor f = in_layout(features, maps.features_layout);
  const Tensor x = in_layout(logits, maps.logits_layout);
  const Sizes pooled{features.size(0), logits.size(1), features.size(1)};
  const ScalarType dtype = accumulate_type(features.scalar_type());
  const Tensor upstream = checked_kept(op, "grad", grad, dtype, pooled, features);
  const Tensor kept =
      checked_kept(op, "log_sum", log_sum, dtype, {features.size(0), features.size(2)}, features);
  check_optional(op, "grad_mass", grad_mass, dtype, {features.size(0), logits.size(1)}, features);
  const Tensor upstream_mass = grad_mass ? in_layout(*grad_mass, Layout::planar) : upstream;
  const auto make = [&](bool needed, const Tensor& like, Layout layout) {
    return needed ? empty_in_layout({like.size(0), like.size(1), like.size(2)}, layout,
                                    like.scalar_type(), like)
                  : empty_in_layout({0}, Layout::planar, like.scalar_type(), like);
  };
  Tensor grad_features = make(need_features, features, maps.features_layout);
  Tensor grad_logits = make(need_logits, logits, maps.logits_layout);
  dispatch_float(op, features.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    backward(data<A>(upstream), grad_mass ? data<A>(upstream_mass) : nullptr, data<T>(f),
             data<T>(x), data<A>(kept), maps,
             need_features ? mutable_data<T>(grad_features) : nullptr,
             need_logits ? mutable_data<T>(grad_logits) : nullptr);
  });
  return {grad_features, grad_logits};
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("region_pool", TORCH_BOX(&densesiam::region_pool));
  m.impl("region_pool_backward", TORCH_BOX(&densesiam::region_pool_backward));
}
