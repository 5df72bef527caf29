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

  // Of none yet, before all from that index on.
  static DENSESIAM_HD Greatest starting(int first) { return {A(-INFINITY), first}; }

  DENSESIAM_HD bool offer(A other, int other_index) {
    const bool is_nan = value != value, other_is_nan = other != other;
    const bool ties = value == other || (is_nan && other_is_nan);
    return take(ties ? other_index < index : other_is_nan || (!is_nan && other > value), other,
                other_index);
  }
  // The same of an index above all that were offered: it loses every tie.
  DENSESIAM_HD bool offer_next(A other, int other_index) {
    return take(!(other <= value) && value == value, other, other_index);
  }
  DENSESIAM_HD bool take(bool beaten, A other, int other_index) {
    value = beaten ? other : value;
    index = beaten ? other_index : index;
    return beaten;
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
