// log sum exp in one pass, and the two losses that are built on it.
#pragma once

#include <limits>

#include "../../numeric.h"
#include "block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

// In place of minus infinity, so that differences of two maxima are never NaN.
template <class A>
constexpr A kLowest = std::numeric_limits<A>::lowest();

// NaN is not larger than a number.
DENSESIAM_HD float larger(float a, float b) { return fmaxf(a, b); }
DENSESIAM_HD double larger(double a, double b) { return fmax(a, b); }

// sum = sum of exp(x - max) over all x seen so far.
template <class A>
struct LogSumExp {
  A max, sum;

  static DENSESIAM_HD LogSumExp identity() { return {kLowest<A>, A(0)}; }

  // Raises the maximum; returns what sums that were relative to the old one are multiplied by.
  DENSESIAM_HD A raise(A other) {
    const A raised = larger(max, other);
    const A factor = exponential(max - raised);
    max = raised;
    sum *= factor;
    return factor;
  }
  // Returns the largest of them.
  template <int N>
  DENSESIAM_HD A add(const A (&x)[N]) {
    A most = x[0];
#pragma unroll
    for (int n = 1; n < N; ++n) most = larger(most, x[n]);
    raise(most);
#pragma unroll
    for (int n = 0; n < N; ++n) sum += exponential(x[n] - max);
    return most;
  }
  DENSESIAM_HD void merge(const LogSumExp& other) {
    raise(other.max);
    sum += other.sum * exponential(other.max - max);
  }
  __device__ __forceinline__ void merge(const Lanes& lanes) {
    A most = max;
    lanes.exchange([&](const auto& other) { most = larger(most, other(most)); });
    raise(most);
    lanes.sum(sum);
  }
  DENSESIAM_HD A value() const { return max + std::log(sum); }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
