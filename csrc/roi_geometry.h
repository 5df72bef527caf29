// Where the points of RoIAlign fall on a feature map: one coordinate function for every kernel.
//
// A box edge x lies at pixel coordinate x * scale - offset. The box has `cells` cells along an
// axis, each of them `points` points: point i of cell c lies at start + c * cell + (i + 1/2) * cell
// / points. Outside [-1, extent] it counts for nothing, else it is clamped to [0, extent - 1].
//
// A box that is a whole number of pixels, or a point on an end of [-1, extent], makes the last bit
// decide. So every step is rounded on its own: products go through product() of numeric.h, which no
// compiler fuses with the sum that takes it.
#pragma once

#include "geometry.h"

namespace densesiam {

// How boxes are read, whatever the box.
template <class C>
struct RoiRules {
  C scale;
  int sampling_ratio;  // points a cell and axis; adaptive where it is not positive
  bool aligned;
};

template <class C>
struct RoiAxis {
  C start, cell;  // in pixels
  int cells, points, extent;
};

template <class C>
DENSESIAM_HD RoiAxis<C> roi_axis(C from, C to, int cells, int extent, const RoiRules<C>& rules) {
  const C offset = rules.aligned ? C(-0.5) : C(0);
  const C start = product(from, rules.scale) + offset;
  const C end = product(to, rules.scale) + offset;
  C length = end - start;
  if (!rules.aligned && !(length > C(1))) length = C(1);
  const C cell = quotient(length, C(cells));
  int points = rules.sampling_ratio;
  if (points <= 0) {
    // Beyond 2^30 points an axis the map is a speck in the box, and of an infinite one it is
    // nothing.
    const C most = C((1 << 30) / cells), wanted = std::ceil(cell);
    const bool any = wanted > C(0) && wanted - wanted == C(0);
    points = !any ? 0 : wanted < most ? int(wanted) : int(most);
  }
  return {start, cell, cells, points, extent};
}

// One point reads (1 - weight) * value[low] + weight * value[high].
template <class C>
struct RoiTap {
  int low, high;
  C weight;
  bool counts;
};

template <class C>
DENSESIAM_HD RoiTap<C> roi_tap(const RoiAxis<C>& axis, int cell, int point) {
  const C within = quotient(product(C(point) + C(0.5), axis.cell), C(axis.points));
  const C first = axis.start + product(C(cell), axis.cell);
  const C at = first + within;
  const C last = C(axis.extent - 1);
  const bool counts = at >= C(-1) && at <= C(axis.extent);
  const C clamped = counts && at > C(0) ? (at < last ? at : last) : C(0);
  const int low = int(clamped);
  return {low, low + 1 < axis.extent ? low + 1 : low, clamped - C(low), counts};
}

// The share of `pixel` in that point.
template <class C>
DENSESIAM_HD C roi_share(const RoiTap<C>& tap, int pixel) {
  if (!tap.counts) return C(0);
  return (tap.low == pixel ? C(1) - tap.weight : C(0)) + (tap.high == pixel ? tap.weight : C(0));
}

struct PointRange {
  int begin, end;
};

// Of all points of an axis, numbered from cell to cell, those from `low` to `high` pixels, and a
// few more: the inverse of roi_tap, widened by what rounding can move.
template <class C>
DENSESIAM_HD PointRange roi_points(const RoiAxis<C>& axis, C low, C high) {
  const int all = axis.cells * axis.points;
  if (all == 0) return {0, 0};
  const C spacing = quotient(axis.cell, C(axis.points));
  const C reach = axis.cell * C(axis.cells);
  const C epsilon = sizeof(C) == 8 ? C(1e-15) : C(1e-6);  // several roundings
  const C slack = epsilon * (std::fabs(axis.start) + std::fabs(reach) + C(axis.extent));
  C first = quotient(low - slack - axis.start, spacing);
  C last = quotient(high + slack - axis.start, spacing);
  if (spacing < C(0)) {
    const C swapped = first;
    first = last;
    last = swapped;
  }
  // Where the spacing is next to nothing both are infinite or NaN: then all of them.
  if (!(last - first < C(all))) return {0, all};
  first -= C(2) + epsilon * std::fabs(first);
  last += C(2) + epsilon * std::fabs(last);
  const int begin = first > C(0) ? (first < C(all) ? int(first) : all) : 0;
  const int end = last > C(0) ? (last < C(all) ? int(last) : all) : 0;
  return {begin, end};
}

// Those of the range that are in one cell, numbered from 0 there.
template <class C>
DENSESIAM_HD PointRange points_of_cell(const RoiAxis<C>& axis, const PointRange& range, int cell) {
  const int first = cell * axis.points;
  const int begin = range.begin - first, end = range.end - first;
  return {begin > 0 ? begin : 0, end < axis.points ? end : axis.points};
}

template <class C>
DENSESIAM_HD PointRange points_on_map(const RoiAxis<C>& axis) {
  return roi_points(axis, C(-1), C(axis.extent));
}

}  // namespace densesiam
