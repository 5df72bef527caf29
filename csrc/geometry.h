// Where the cells of a box fall on a feature map: one coordinate function for every kernel.
//
// A box edge pair (from, to) is in fractions of the map; from > to reads it mirrored. Cell j of
// `count` has its centre at u = from + (j + 1/2) / count * (to - from), pixel coordinate u * extent
// - 1/2, clamped to [0, extent - 1] (pixel centres lie at half-integers).
#pragma once

#include "numeric.h"

namespace densesiam {

// Coordinates are double where the boxes or the features are, else float.
template <class T, class Box>
using Coordinate =
    std::conditional_t<std::is_same_v<T, double> || std::is_same_v<Box, double>, double, float>;

template <class C>
DENSESIAM_HD C cell_coordinate(C from, C to, int cell, int count, int extent) {
  const C fraction = quotient(C(cell) + C(0.5), C(count));
  const C coordinate = product(from + product(fraction, to - from), C(extent)) - C(0.5);
  const C last = C(extent - 1);
  // A NaN fails both comparisons' true branches only in this order and lands on 0.
  return coordinate > C(0) ? (coordinate < last ? coordinate : last) : C(0);
}

// One sample reads (1 - weight) * value[low] + weight * value[high]. A pixel of weight 0 is not
// read, for it may hold an infinity: where a sample falls on one pixel, that is both, half and
// half.
template <class C>
struct Tap {
  int low;
  int high;
  C weight;
};

// The weight is of type A, in which it is used: coming from a wider one it may round to 0 or 1.
template <class A, class C>
DENSESIAM_HD Tap<A> cell_tap(C from, C to, int cell, int count, int extent) {
  const C coordinate = cell_coordinate(from, to, cell, count, extent);
  const int low = int(coordinate);  // the coordinate is not negative: truncation is floor
  const A weight = A(coordinate - C(low));
  if (weight == A(0)) return {low, low, A(0.5)};
  if (weight == A(1)) return {low + 1, low + 1, A(0.5)};
  return {low, low + 1, weight};
}

// (1 - weight) * low + weight * high. The difference of two infinities would be NaN, and that of
// two great numbers infinite.
template <class V, class A>
DENSESIAM_HD V mix(V low, V high, A weight) {
  return (A(1) - weight) * low + weight * high;
}

// The share of `pixel` in that sample; 0 where the sample does not touch it.
template <class C>
DENSESIAM_HD C tap_share(const Tap<C>& tap, int pixel) {
  return (tap.low == pixel ? C(1) - tap.weight : C(0)) + (tap.high == pixel ? tap.weight : C(0));
}

template <class C>
struct Box4 {
  C x1, y1, x2, y2;
};

template <class C, class Box>
DENSESIAM_HD Box4<C> read_box(const Box* boxes, std::int64_t index) {
  const Box* box = boxes + 4 * index;
  return {C(box[0]), C(box[1]), C(box[2]), C(box[3])};
}

// x - x is 0 for finite x and NaN otherwise.
template <class C>
DENSESIAM_HD bool is_finite(const Box4<C>& box) {
  return (box.x1 - box.x1) + (box.y1 - box.y1) + (box.x2 - box.x2) + (box.y2 - box.y2) == C(0);
}

}  // namespace densesiam
