// Losses between the channels of p and z at one pixel: functors that pixel_loss.cuh takes.
//
//   cosine         l = -p.z / (max(|p|, e) max(|z|, e)), e = 1e-8
//                  statistics a = 1 / (|p| |z|), b = cos / |p|^2 (0 where |p| < e);
//                  dp = -g (a z - b p)
//   cross_entropy  l = -sum_c softmax(z)_c log softmax(p)_c
//                  statistics log sum exp p, log sum exp z;
//                  dp = g (softmax(p) - softmax(z))
//
// A Loss<A> is the sums of some of a pixel's channels:
//   identity(), add(p, z), merge(other)        of none, of N channels more, of two threads'
//   channels merge(lanes)                               of the channels of all these lanes, in each
//   of them finish()                                   the loss and the two statistics, of all
//   channels gradient(p, z, first, second, grad)        dp of one element
// One of products has besides:
//   finish(p_scale, z_scale)                   the same of vectors that were scaled
//
// Operations an element: 6 (cosine), or two exponentials (cross_entropy).
#pragma once

#include "device/softmax.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

// A pixel's loss and what its backward needs.
template <class A>
struct PixelLoss {
  A loss, first, second;
};

// Squares overflow from half the exponents on. Vectors whose square is above 3/4 of them are scaled
// down by 5/8 of them: what then vanishes is nothing beside the rest, and none of the three sums
// overflows. NaN is large too.
template <class A>
DENSESIAM_HD A scale_of(A square) {
  constexpr bool wide = sizeof(A) == 8;
  return square < (wide ? A(0x1p768) : A(0x1p96f)) ? A(1) : wide ? A(0x1p-640) : A(0x1p-80f);
}

// p.p, z.z and p.z: what a loss of these three, its own Loss<A>, is made from.
template <template <class> class Loss, class A_>
struct LossOfProducts {
  using A = A_;
  static constexpr bool kOfProducts = true;
  A pp, zz, pz;

  static DENSESIAM_HD Loss<A> identity() { return {{A(0), A(0), A(0)}}; }
  template <int N>
  DENSESIAM_HD void add(const A (&p)[N], const A (&z)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      pp += p[n] * p[n];
      zz += z[n] * z[n];
      pz += p[n] * z[n];
    }
  }
  DENSESIAM_HD void merge(const LossOfProducts& other) {
    pp += other.pp;
    zz += other.zz;
    pz += other.pz;
  }
  __device__ __forceinline__ void merge(const Lanes& lanes) { lanes.sum(pp, zz, pz); }
  static DENSESIAM_HD A gradient(A p, A z, A a, A b, A grad) { return grad * (b * p - a * z); }
};

template <class A>
struct Cosine : LossOfProducts<Cosine, A> {
  DENSESIAM_HD PixelLoss<A> finish(A p_scale, A z_scale) const {
    const A pp = this->pp, zz = this->zz;
    // The square of the least norm, 0 of a scaled one; NaN passes every comparison.
    const A p_least = A(1e-16) * p_scale * p_scale, z_least = A(1e-16) * z_scale * z_scale;
    const A p_inverse = inverse_root(pp < p_least ? p_least : pp);
    const A a = p_inverse * inverse_root(zz < z_least ? z_least : zz);
    const A cosine = this->pz * a, p_norm = p_inverse * p_scale;
    return {-cosine, a * p_scale * z_scale, pp < p_least ? A(0) : cosine * p_norm * p_norm};
  }
};

template <class A_>
struct CrossEntropy {
  using A = A_;
  static constexpr bool kOfProducts = false;
  LogSumExp<A> p_sum, z_sum;
  A product;  // sum of exp(z - max z) (p - max p)

  static DENSESIAM_HD CrossEntropy identity() {
    return {LogSumExp<A>::identity(), LogSumExp<A>::identity(), A(0)};
  }
  DENSESIAM_HD void raise(A p_max, A z_max) {
    const A before = p_sum.max;
    p_sum.raise(p_max);
    // Of no channels, whose maximum is the lowest number, the difference may be infinite.
    product += z_sum.sum == A(0) ? A(0) : z_sum.sum * (before - p_sum.max);
    product *= z_sum.raise(z_max);
  }
  template <int N>
  DENSESIAM_HD void add(const A (&p)[N], const A (&z)[N]) {
    A p_max = p[0], z_max = z[0];
#pragma unroll
    for (int n = 1; n < N; ++n) {
      p_max = larger(p_max, p[n]);
      z_max = larger(z_max, z[n]);
    }
    raise(p_max, z_max);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const A shifted = p[n] - p_sum.max;
      const A mass = exponential(z[n] - z_sum.max);
      p_sum.sum += exponential(shifted);
      z_sum.sum += mass;
      product += mass * shifted;
    }
  }
  DENSESIAM_HD void merge(CrossEntropy other) {
    raise(other.p_sum.max, other.z_sum.max);
    other.raise(p_sum.max, z_sum.max);
    p_sum.sum += other.p_sum.sum;
    z_sum.sum += other.z_sum.sum;
    product += other.product;
  }
  __device__ __forceinline__ void merge(const Lanes& lanes) {
    A p_max = p_sum.max, z_max = z_sum.max;
    lanes.exchange([&](const auto& other) {
      p_max = larger(p_max, other(p_max));
      z_max = larger(z_max, other(z_max));
    });
    raise(p_max, z_max);
    lanes.sum(p_sum.sum, z_sum.sum, product);
  }
  DENSESIAM_HD PixelLoss<A> finish() const {
    const A p_log = std::log(p_sum.sum);
    return {p_log - product * quotient(A(1), z_sum.sum), p_sum.max + p_log, z_sum.value()};
  }
  static DENSESIAM_HD A gradient(A p, A z, A p_log_sum, A z_log_sum, A grad) {
    return grad * (exponential(p - p_log_sum) - exponential(z - z_log_sum));
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
