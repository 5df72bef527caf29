// The greatest of numbered values: NaN is greater than every number, and on a tie the lowest index
// wins.
#pragma once

#include "block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

template <class A>
struct Greatest {
  A value;
  int index;

  static DENSESIAM_HD Greatest identity() { return {A(-INFINITY), 0x7fffffff}; }

  DENSESIAM_HD bool is_beaten_by(A other, int other_index) const {
    const bool is_nan = value != value, other_is_nan = other != other;
    const bool ties = value == other || (is_nan && other_is_nan);
    return ties ? other_index < index : other_is_nan || (!is_nan && other > value);
  }
  DENSESIAM_HD bool offer(A other, int other_index) {
    const bool beaten = is_beaten_by(other, other_index);
    value = beaten ? other : value;
    index = beaten ? other_index : index;
    return beaten;
  }
  template <class F>
  DENSESIAM_HD Greatest map(const F& f) const {
    return {f(value), f(index)};
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
