// Losses between the channels of p and z: functors that pixel_loss.h and overlap_similarity take.
//
// A loss L has two functions, each of any accumulation type A:
//   L::tile(p, z, channels, count, out)        the losses of `count` pixels, and two statistics
//   L::gradient(p, z, first, second, grad)     dp of one element, from its pixel's statistics and
//                                              upstream gradient
#pragma once

#include <string>

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

// |p|^2, |z|^2 and p.z of each pixel, in the places of loss, first and second statistic.
template <class A>
DENSESIAM_HD void sum_products(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                               TileLosses<A>& out) {
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
        pp_part[i] += a[i] * a[i];
        zz_part[i] += b[i] * b[i];
        pz_part[i] += a[i] * b[i];
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

// A loss of those three numbers: Loss::finish(pp, zz, pz, loss, a, b), and dp = -g (a z - b p).
template <class Loss>
struct LossOfProducts {
  template <class A>
  static DENSESIAM_HD void tile(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                                TileLosses<A>& out) {
    sum_products(p, z, channels, count, out);
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      Loss::finish(out.loss[i], out.first[i], out.second[i], out.loss[i], out.first[i],
                   out.second[i]);
    }
  }
  template <class A>
  static DENSESIAM_HD A gradient(A p, A z, A a, A b, A grad) {
    return grad * (b * p - a * z);
  }
};

// Minus the cosine of p and z. Statistics a = 1 / (|p| |z|) with both norms clamped, and
// b = cos / |p|^2, or 0 where |p| is below the clamp.
struct Cosine : LossOfProducts<Cosine> {
  template <class A>
  static DENSESIAM_HD void finish(A pp, A zz, A pz, A& loss, A& a, A& b) {
    const A least = A(1e-16);  // the square of the least norm; NaN passes every comparison
    a = A(1) / (std::sqrt(pp < least ? least : pp) * std::sqrt(zz < least ? least : zz));
    const A cosine = pz * a;
    b = pp < least ? A(0) : cosine / pp;
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
