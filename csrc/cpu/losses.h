// Losses between the channels of p and z: functors that pixel_loss.h and overlap_similarity take.
//
// A loss L has two functions, each of any accumulation type A:
//   L::tile(p, z, channels, count, out)        the losses of `count` pixels, and two statistics
//   L::gradient(p, z, first, second, grad)     dp of one element, from its pixel's statistics and
//                                              upstream gradient
// and may have a third, for vectors whose channels lie next to each other:
//   L::pixels<Bytes>(p, z, channels, count, out)
#pragma once

#include <string>

#include "support/simd.h"
#include "support/softmax.h"

namespace densesiam {

// Per-pixel results of one tile.
template <class A>
struct TileLosses {
  A loss[kTile], first[kTile], second[kTile];

  // What an image of weight 0 has, whatever it holds.
  DENSESIAM_HD void clear(int count) {
    for (int i = 0; i < count; ++i) loss[i] = first[i] = second[i] = A(0);
  }
};

// Sums over channels are taken over a few at a time and then added up: rounding grows with the root
// of the number of terms in a sum.
constexpr std::int64_t kSummed = 64;

// Sums in flight at a time over vectors of channels: an addition takes four cycles.
constexpr int kChains = 2;

// sums[i] = the sum of vector i's lanes, for i < count; the vectors are changed.
template <int Lanes, class V, class A>
DENSESIAM_HD void sum_lanes(V* vectors,  // [Lanes]
                            A* sums,     // [count]
                            int count) {
  transpose_square<Lanes>(vectors);
#pragma GCC unroll 4
  for (int step = Lanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) vectors[i] += vectors[i + step];
  }
  A lanes[Lanes];
  std::memcpy(lanes, &vectors[0], sizeof(lanes));
  std::copy_n(lanes, count, sums);
}

// What the vectors of each pixel are multiplied by before they are squared.
template <class A>
struct TileScales {
  A p[kTile], z[kTile];
};

// Squares overflow from half the exponents on. Vectors whose square is above 3/4 of them are scaled
// down by 5/8 of them: what then vanishes is nothing beside the rest, and none of the three sums
// overflows.
template <class A>
constexpr A kLargeSquare = sizeof(A) == 8 ? A(0x1p768) : A(0x1p96f);
template <class A>
constexpr A kScaleOfLarge = sizeof(A) == 8 ? A(0x1p-640) : A(0x1p-80f);

// The scales of vectors of these squares; whether any is not 1. NaN is large too.
template <class A>
DENSESIAM_HD bool scales_of(const A* pp,  // [count]
                            const A* zz,  // [count]
                            int count, TileScales<A>& scales) {
  bool large = false;
  for (int i = 0; i < count; ++i) {
    scales.p[i] = pp[i] < kLargeSquare<A> ? A(1) : kScaleOfLarge<A>;
    scales.z[i] = zz[i] < kLargeSquare<A> ? A(1) : kScaleOfLarge<A>;
    large |= scales.p[i] != A(1) || scales.z[i] != A(1);
  }
  return large;
}

// |p|^2, |z|^2 and p.z of each pixel, in the places of loss, first and second statistic.
template <bool Scaled, class A>
DENSESIAM_HD void sum_products(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                               const TileScales<A>& scales, TileLosses<A>& out) {
  A *pp = out.loss, *zz = out.first, *pz = out.second;
  out.clear(count);
  for (std::int64_t start = 0; start < channels; start += kSummed) {
    A pp_part[kTile], zz_part[kTile], pz_part[kTile];
    for (int i = 0; i < count; ++i) pp_part[i] = zz_part[i] = pz_part[i] = A(0);
    for (std::int64_t c = start; c < std::min(channels, start + kSummed); ++c) {
      const A* __restrict a = p.row(c);
      const A* __restrict b = z.row(c);
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const A u = Scaled ? a[i] * scales.p[i] : a[i], v = Scaled ? b[i] * scales.z[i] : b[i];
        pp_part[i] += u * u;
        zz_part[i] += v * v;
        pz_part[i] += u * v;
      }
    }
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      pp[i] += pp_part[i];
      zz[i] += zz_part[i];
      pz[i] += pz_part[i];
    }
  }
}

// The same of pixels whose channels lie next to each other, without a tile: a lane of a register
// sums every kLanes-th channel, and a transposition brings the lanes of kLanes pixels together.
template <int Bytes, bool Scaled, class T>
DENSESIAM_HD void sum_products_of_pixels(const T* p,  // [count, C]
                                         const T* z,  // [count, C]
                                         std::int64_t channels, int count,
                                         const TileScales<Accumulate<T>>& scales,
                                         TileLosses<Accumulate<T>>& out) {
  using A = Accumulate<T>;
  constexpr int kLanes = Bytes / int(sizeof(A));
  using V = Vector<A, kLanes>;
  for (int from = 0; from < count; from += kLanes) {
    const int pixels = std::min(kLanes, count - from);
    V pp[kLanes] = {}, zz[kLanes] = {}, pz[kLanes] = {};
    for (int i = 0; i < pixels; ++i) {
      const T* a = p + (from + i) * channels;
      const T* b = z + (from + i) * channels;
      for (std::int64_t start = 0; start < channels; start += kSummed * kLanes) {
        const std::int64_t end = std::min(channels, start + kSummed * kLanes);
        V pp_sum[kChains] = {}, zz_sum[kChains] = {}, pz_sum[kChains] = {};
        const auto add = [&](const T* a, const T* b, int chain) DENSESIAM_INLINE {
          V u, v;
          load_vector(a, u);
          load_vector(b, v);
          if constexpr (Scaled) {
            u *= scales.p[from + i];
            v *= scales.z[from + i];
          }
          pp_sum[chain] += u * u;
          zz_sum[chain] += v * v;
          pz_sum[chain] += u * v;
        };
        std::int64_t c = start;
        for (; c + kChains * kLanes <= end; c += kChains * kLanes) {
#pragma GCC unroll 4
          for (int chain = 0; chain < kChains; ++chain) {
            add(a + c + chain * kLanes, b + c + chain * kLanes, chain);
          }
        }
        for (; c + kLanes <= end; c += kLanes) add(a + c, b + c, 0);
        if (c < end) {
          T a_rest[kLanes] = {}, b_rest[kLanes] = {};
          std::copy_n(a + c, end - c, a_rest);
          std::copy_n(b + c, end - c, b_rest);
          add(a_rest, b_rest, 0);
        }
        for (int chain = 0; chain < kChains; ++chain) {
          pp[i] += pp_sum[chain];
          zz[i] += zz_sum[chain];
          pz[i] += pz_sum[chain];
        }
      }
    }
    sum_lanes<kLanes>(pp, out.loss + from, pixels);
    sum_lanes<kLanes>(zz, out.first + from, pixels);
    sum_lanes<kLanes>(pz, out.second + from, pixels);
  }
}

// A loss of those three numbers: Loss::finish(pp, zz, pz, p_scale, z_scale, loss, a, b), and
// dp = -g (a z - b p).
template <class Loss>
struct LossOfProducts {
  template <class A>
  static DENSESIAM_HD void tile(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                                TileLosses<A>& out) {
    TileScales<A> scales;
    sum_products<false>(p, z, channels, count, scales, out);
    if (scales_of(out.loss, out.first, count, scales)) {
      sum_products<true>(p, z, channels, count, scales, out);
    }
    finish_all(count, scales, out);
  }
  template <int Bytes, class T>
  static DENSESIAM_HD void pixels(const T* p,  // [count, C]
                                  const T* z,  // [count, C]
                                  std::int64_t channels, int count,
                                  TileLosses<Accumulate<T>>& out) {
    TileScales<Accumulate<T>> scales;
    sum_products_of_pixels<Bytes, false>(p, z, channels, count, scales, out);
    if (scales_of(out.loss, out.first, count, scales)) {
      sum_products_of_pixels<Bytes, true>(p, z, channels, count, scales, out);
    }
    finish_all(count, scales, out);
  }
  template <class A>
  static DENSESIAM_HD void finish_all(int count, const TileScales<A>& scales, TileLosses<A>& out) {
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      Loss::finish(out.loss[i], out.first[i], out.second[i], scales.p[i], scales.z[i], out.loss[i],
                   out.first[i], out.second[i]);
    }
  }
  template <class A>
  static DENSESIAM_HD A gradient(A p, A z, A a, A b, A grad) {
    return grad * (b * p - a * z);
  }
};

// Minus the cosine of p and z. Statistics a = 1 / (|p| |z|) with both norms clamped, and
// b = cos / |p|^2, or 0 where |p| is below the clamp. The sums are of scaled vectors.
struct Cosine : LossOfProducts<Cosine> {
  template <class A>
  static DENSESIAM_HD void finish(A pp, A zz, A pz, A p_scale, A z_scale, A& loss, A& a, A& b) {
    // The square of the least norm, 0 of a scaled one; NaN passes every comparison.
    const A p_least = A(1e-16) * p_scale * p_scale, z_least = A(1e-16) * z_scale * z_scale;
    a = A(1) / (std::sqrt(pp < p_least ? p_least : pp) * std::sqrt(zz < z_least ? z_least : zz));
    const A cosine = pz * a;
    a = a * p_scale * z_scale;
    b = pp < p_least ? A(0) : cosine / pp * p_scale * p_scale;
    loss = -cosine;
  }
};

// Cross-entropy of softmax p toward softmax z. With p' = p - max p and z' = z - max z:
// loss = log sum exp p' - sum exp(z') p' / sum exp z'. Statistics log sum exp p and log sum exp z:
// dp = g (softmax p - softmax z).
struct CrossEntropy {
  template <class A>
  static DENSESIAM_HD void tile(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                                TileLosses<A>& out) {
    A p_max[kTile], z_max[kTile], p_sum[kTile], z_sum[kTile], product[kTile];
    greatest_of_rows(p, channels, count, p_max);
    greatest_of_rows(z, channels, count, z_max);
    for (int i = 0; i < count; ++i) p_sum[i] = z_sum[i] = product[i] = A(0);
    for (std::int64_t c = 0; c < channels; ++c) {
      const A* __restrict a = p.row(c);
      const A* __restrict b = z.row(c);
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const A shifted = a[i] - p_max[i];
        const A mass = exp_of_negative(b[i] - z_max[i]);
        p_sum[i] += exp_of_negative(shifted);
        z_sum[i] += mass;
        product[i] += mass * shifted;
      }
    }
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const A p_log = log_of_normal(p_sum[i]);
      out.loss[i] = p_log - product[i] / z_sum[i];
      out.first[i] = p_max[i] + p_log;
      out.second[i] = z_max[i] + log_of_normal(z_sum[i]);
    }
  }
  template <class A>
  static DENSESIAM_HD A gradient(A p, A z, A p_log_sum, A z_log_sum, A grad) {
    return grad * (exp_of_negative(p - p_log_sum) - exp_of_negative(z - z_log_sum));
  }
};

// Calls body(Type<Loss>{}) with the loss of that name.
template <class Body>
auto dispatch_kind(const char* op, const std::string& kind, const Body& body) {
  check(kind == "cosine" || kind == "cross_entropy", op,
        ": kind must be one of cosine, cross_entropy, got '", kind, "'");
  return kind == "cosine" ? body(Type<Cosine>{}) : body(Type<CrossEntropy>{});
}

}  // namespace densesiam
