// Softmax over the channels of a tile, on the CPU.
#pragma once

#include "tiles.h"
#include "vecmath.h"

namespace densesiam {

// The greatest channel of each pixel. A NaN may be passed over: the sums that follow keep it.
template <class A>
DENSESIAM_HD void greatest_of_rows(Tile<const A> tile, std::int64_t channels, int count,
                                   A* __restrict greatest) {
  for (int i = 0; i < count; ++i) greatest[i] = tile.row(0)[i];
  for (std::int64_t c = 1; c < channels; ++c) {
    const A* __restrict row = tile.row(c);
#pragma omp simd
    for (int i = 0; i < count; ++i) greatest[i] = row[i] > greatest[i] ? row[i] : greatest[i];
  }
}

// Takes value and its index where it is greater. NaN counts as greater than every number, and the
// first NaN wins.
template <class A>
DENSESIAM_HD void take_greater(A value, std::int32_t k, A& greatest, std::int32_t& index) {
  const bool better = !(value <= greatest) & (greatest == greatest);
  greatest = better ? value : greatest;
  index = better ? k : index;
}

// The greatest channel with its index: the lowest on a tie.
template <class A>
DENSESIAM_HD void argmax_of_rows(Tile<const A> tile, std::int64_t channels, int count,
                                 A* __restrict greatest, std::int32_t* __restrict index) {
  for (int i = 0; i < count; ++i) {
    greatest[i] = tile.row(0)[i];
    index[i] = 0;
  }
  for (std::int64_t c = 1; c < channels; ++c) {
    const A* __restrict row = tile.row(c);
#pragma omp simd
    for (int i = 0; i < count; ++i) take_greater(row[i], std::int32_t(c), greatest[i], index[i]);
  }
}

// sum over channels of exp(x - greatest). Calls before(c) ahead of each channel: the exponentials
// leave memory idle.
template <class A, class Before>
DENSESIAM_HD void sum_of_exponentials(Tile<const A> tile, std::int64_t channels, int count,
                                      const A* __restrict greatest, A* __restrict sum,
                                      const Before& before) {
  for (int i = 0; i < count; ++i) sum[i] = A(0);
  for (std::int64_t c = 0; c < channels; ++c) {
    before(c);
    const A* __restrict row = tile.row(c);
#pragma omp simd
    for (int i = 0; i < count; ++i) sum[i] += exp_of_negative(row[i] - greatest[i]);
  }
}

}  // namespace densesiam
