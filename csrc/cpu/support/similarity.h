// The two losses of one tile, and their gradients: what pixel_similarity and overlap_similarity
// share on the CPU.
//
// The statistics kept for backward are two numbers a pixel:
//   cosine:         a = 1 / (|p| |z|) with both norms clamped, and b = cos / |p|^2, or 0 where |p|
//                   is below the clamp. With upstream gradient g, dp = -g (a z - b p).
//   cross_entropy:  log sum exp p and log sum exp z. dp = g (softmax p - softmax z).
#pragma once

#include <optional>
#include <string>

#include "softmax.h"

namespace densesiam {

enum class Kind { cosine, cross_entropy };

inline Kind kind_of(const char* op, const std::string& kind) {
  check(kind == "cosine" || kind == "cross_entropy", op,
        ": kind must be one of cosine, cross_entropy, got '", kind, "'");
  return kind == "cosine" ? Kind::cosine : Kind::cross_entropy;
}

// Per-pixel results of one tile.
template <class A>
struct TileLosses {
  A loss[kTile], first[kTile], second[kTile];

  // What an image of weight 0 has, whatever it holds.
  DENSESIAM_HD void clear(int count) {
    for (int i = 0; i < count; ++i) loss[i] = first[i] = second[i] = A(0);
  }
};

// |p|^2, |z|^2 and p.z of one pixel to its loss and statistics. NaN passes every comparison.
template <class A>
DENSESIAM_HD void cosine_of_sums(A pp, A zz, A pz, A& loss, A& a, A& b) {
  const A least = A(1e-16);  // the square of the least norm
  a = A(1) / (std::sqrt(pp < least ? least : pp) * std::sqrt(zz < least ? least : zz));
  const A cosine = pz * a;
  b = pp < least ? A(0) : cosine / pp;
  loss = -cosine;
}

// Sums over channels are taken over a few at a time and then added up: rounding grows with the root
// of the number of terms in a sum.
constexpr std::int64_t kSummed = 64;

template <class A>
DENSESIAM_HD void cosine_tile(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                              TileLosses<A>& out) {
  // The totals stand where the results will.
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
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    cosine_of_sums(pp[i], zz[i], pz[i], out.loss[i], out.first[i], out.second[i]);
  }
}

// With p' = p - max p and z' = z - max z: loss = log sum exp p' - sum exp(z') p' / sum exp z'.
template <class A>
DENSESIAM_HD void cross_entropy_tile(Tile<const A> p, Tile<const A> z, std::int64_t channels,
                                     int count, TileLosses<A>& out) {
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
DENSESIAM_HD void similarity_tile(Kind kind, Tile<const A> p, Tile<const A> z,
                                  std::int64_t channels, int count, TileLosses<A>& out) {
  if (kind == Kind::cosine) {
    cosine_tile(p, z, channels, count, out);
  } else {
    cross_entropy_tile(p, z, channels, count, out);
  }
}

// dp of one element, from its pixel's statistics and upstream gradient.
template <class A>
DENSESIAM_HD A cosine_gradient(A p, A z, A a, A b, A grad) {
  return grad * (b * p - a * z);
}
template <class A>
DENSESIAM_HD A cross_entropy_gradient(A p, A z, A p_log_sum, A z_log_sum, A grad) {
  return grad * (exp_of_negative(p - p_log_sum) - exp_of_negative(z - z_log_sum));
}

template <class A, class Body>
DENSESIAM_HD void with_gradient(Kind kind, const Body& body) {
  if (kind == Kind::cosine) {
    body([](A p, A z, A a, A b, A grad)
             DENSESIAM_INLINE { return cosine_gradient(p, z, a, b, grad); });
  } else {
    body([](A p, A z, A a, A b, A grad)
             DENSESIAM_INLINE { return cross_entropy_gradient(p, z, a, b, grad); });
  }
}

// dp of a tile whose rows are `stride` apart in p, z and out alike; out may be p.
template <class T, class Gradient>
DENSESIAM_HD void gradient_of_rows(const T* p, const T* z, T* out, std::int64_t stride,
                                   std::int64_t channels, int count,
                                   const Accumulate<T>* __restrict first,
                                   const Accumulate<T>* __restrict second,
                                   const Accumulate<T>* __restrict grad, const Gradient& gradient) {
  using A = Accumulate<T>;
  for (std::int64_t c = 0; c < channels; ++c) {
    const T* a = p + c * stride;
    const T* b = z + c * stride;
    T* target = out + c * stride;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      target[i] = from_float<T>(
          gradient(A(to_float(a[i])), A(to_float(b[i])), first[i], second[i], grad[i]));
    }
  }
}

// (B,) weights of the images in one contiguous piece, or none.
inline std::optional<Tensor> checked_weight(const char* op, const std::optional<Tensor>& weight,
                                            std::int64_t batch, ScalarType features) {
  if (!weight) return weight;
  check(weight->dim() == 1 && weight->size(0) == batch &&
            weight->scalar_type() == accumulate_type(features),
        op, ": weight must be (B,) = (", batch, ",) in the accumulation type, got shape ",
        shape_of(*weight));
  return in_layout(*weight, Layout::planar);
}

// What the losses of each image are multiplied by: 1 where no weights are given.
template <class A>
struct Weights {
  const A* values;  // (B,) or null
  std::int64_t batch;

  Weights(const std::optional<Tensor>& weight, std::int64_t batch)
      : values(weight ? data<A>(*weight) : nullptr), batch(batch) {}

  A operator[](std::int64_t image) const { return values ? values[image] : A(1); }

  // 1 / (sum of weights over all pixels), 0 where that is 0: what makes a sum a mean.
  A mean_factor(std::int64_t pixels) const {
    double sum = 0;
    for (std::int64_t b = 0; b < batch; ++b) sum += double((*this)[b]);
    sum *= double(pixels);
    return A(sum == 0 ? 0 : 1 / sum);
  }
};

}  // namespace densesiam
