// Bilinear samples on a separable grid, and the gather that is its adjoint, on the CPU: what
// overlap_sample and overlap_similarity share.
//
// Both passes are separable. Forward interpolates two input rows into one, then along it. Backward
// first gathers, for one input row, the sample rows that touch it, then along it the sample
// columns. Every sum runs in ascending order of samples.
//
// The step along a row reads neighbours at any distance, which no vector load can. So it always
// runs across channels: channels-last maps hold them side by side, and of a planar map a few
// channels are transposed in registers on the way into a row buffer, and back on the way out.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../../geometry.h"
#include "simd.h"
#include "tiles.h"

namespace densesiam {

// Channels of a planar map that one piece of work covers: the widest vector of float.
constexpr int kGroup = 16;

// The boxes (B, 4) in one piece, or none. Requires finite ones: their values are read anyway.
inline std::optional<Tensor> checked_boxes(const char* op, const char* name,
                                           const std::optional<Tensor>& boxes) {
  if (!boxes) return boxes;
  const Tensor whole = in_layout(*boxes, Layout::planar);
  const bool wide = whole.scalar_type() == ScalarType::Double;
  for (std::int64_t i = 0; i < whole.size(0); ++i) {
    check(wide ? is_finite(read_box<double>(data<double>(whole), i))
               : is_finite(read_box<float>(data<float>(whole), i)),
          op, ": ", name, " must be finite, and that of sample ", i, " is not");
  }
  return whole;
}

// Forward taps of one axis, as arrays.
template <class A>
struct Taps {
  std::vector<int> low, high;
  std::vector<A> weight;
  int first = 0, last = 0;  // the map's indices in use

  template <class C>
  void build(C from, C to, int count, int extent) {
    low.resize(count);
    high.resize(count);
    weight.resize(count);
    first = extent;
    last = 0;
    for (int cell = 0; cell < count; ++cell) {
      const Tap<A> tap = cell_tap<A>(from, to, cell, count, extent);
      low[cell] = tap.low;
      high[cell] = tap.high;
      weight[cell] = tap.weight;
      first = std::min(first, tap.low);
      last = std::max(last, tap.high);
    }
  }
};

// The adjoint of an axis: for each map index the samples that touch it, in ascending order.
template <class A>
struct Touching {
  std::vector<int> start;  // extent + 1
  std::vector<int> cell;
  std::vector<A> share;

  template <class C>
  void build(C from, C to, int count, int extent) {
    std::vector<Tap<A>> taps(count);
    start.assign(extent + 1, 0);
    for (int j = 0; j < count; ++j) {
      taps[j] = cell_tap<A>(from, to, j, count, extent);
      ++start[taps[j].low + 1];
      if (taps[j].high != taps[j].low) ++start[taps[j].high + 1];
    }
    for (int e = 0; e < extent; ++e) start[e + 1] += start[e];
    cell.resize(start[extent]);
    share.resize(start[extent]);
    std::vector<int> next(start.begin(), start.end() - 1);
    for (int j = 0; j < count; ++j) {
      const auto append = [&](int pixel) {
        cell[next[pixel]] = j;
        share[next[pixel]++] = tap_share(taps[j], pixel);
      };
      append(taps[j].low);
      if (taps[j].high != taps[j].low) append(taps[j].high);
    }
  }
};

// Both axes of one image's box. They are not rebuilt for the image they were built for.
template <template <class> class Axis, class A>
struct Grid {
  Axis<A> x, y;
  std::int64_t image = -1;

  // `boxes` (B, 4) hold float or double; none is the whole map. Coordinates are double where the
  // boxes or the features are.
  void build(const std::optional<Tensor>& boxes, std::int64_t of_image, int columns, int width,
             int rows, int height) {
    if (image == of_image) return;
    image = of_image;
    if (!boxes) {
      build_box(Box4<A>{A(0), A(0), A(1), A(1)}, columns, width, rows, height);
    } else if (boxes->scalar_type() == ScalarType::Double) {
      build_box(read_box<double>(data<double>(*boxes), image), columns, width, rows, height);
    } else {
      build_box(read_box<A>(data<float>(*boxes), image), columns, width, rows, height);
    }
  }

 private:
  template <class C>
  void build_box(const Box4<C>& box, int columns, int width, int rows, int height) {
    x.build(box.x1, box.x2, columns, width);
    y.build(box.y1, box.y2, rows, height);
  }
};

// What cells of the grid a call computes: whole rows of it, or a piece of one row.
struct Cells {
  int first_row, last_row, first_column, last_column;

  int columns() const { return last_column - first_column; }
};

// A row of a few planes, with the planes' numbers side by side: column c of it is the vector at
// buffer + c * Lanes. load(value, plane, column) gives what stands there, as a vector over columns
// or as one number.
template <int Lanes, class A, class Load>
DENSESIAM_HD void turn_row(int planes, int first, int last, A* __restrict buffer,
                           const Load& load) {
  if (last - first >= Lanes) {
    for (int c = first; c < last; c += Lanes) {
      const int column = std::min(c, last - Lanes);
      Vector<A, Lanes> square[Lanes];
#pragma GCC unroll 16
      for (int l = 0; l < Lanes; ++l) load(square[l], std::min(l, planes - 1), column);
      transpose_square<Lanes>(square);
      std::memcpy(buffer + std::int64_t(column) * Lanes, square, sizeof(square));
    }
  } else {
    for (int column = first; column < last; ++column) {
      for (int l = 0; l < Lanes; ++l) {
        load(buffer[column * Lanes + l], std::min(l, planes - 1), column);
      }
    }
  }
}

// Cells of a row of a few planes, from combine(value, cell), a vector over the planes: plane l at
// out + l * out_plane.
template <int Lanes, class A, class Out, class Combine>
DENSESIAM_HD void write_planes(int planes, int first, int last, Out* out, std::int64_t out_plane,
                               const Combine& combine) {
  using V = Vector<A, Lanes>;
  const int cells = last - first;
  if (cells >= Lanes) {
    for (int c = 0; c < cells; c += Lanes) {
      const int cell = std::min(c, cells - Lanes);
      V square[Lanes];
#pragma GCC unroll 16
      for (int k = 0; k < Lanes; ++k) combine(square[k], first + cell + k);
      transpose_square<Lanes>(square);
#pragma GCC unroll 16
      for (int l = 0; l < Lanes; ++l) {
        if (l < planes) store_vector(square[l], out + l * out_plane + cell);
      }
    }
  } else {
    for (int cell = 0; cell < cells; ++cell) {
      V value;
      combine(value, first + cell);
      for (int l = 0; l < planes; ++l) out[l * out_plane + cell] = from_float<Out>(value[l]);
    }
  }
}

// `planes` numbers at `source`, and zeros.
template <class V, class T>
DENSESIAM_HD void load_planes(const T* source, int planes, V& result) {
  constexpr int kLanes = sizeof(V) / sizeof(T);
  if (planes == kLanes) {
    load_vector(source, result);
  } else {
    T lanes[kLanes] = {};
    std::copy_n(source, planes, lanes);
    load_vector(lanes, result);
  }
}

// Samples of a few planes of one image: that of plane l in a cell at l * out_plane + cell *
// out_cell, and one of the two steps is 1. `buffer` holds width * kGroup numbers.
template <int Bytes, class T, class Out, class A>
DENSESIAM_HD void sample_planes(const T* in, int planes, int height, int width,
                                const Grid<Taps, A>& grid, const Cells& cells, Out* out,
                                std::int64_t out_plane, std::int64_t out_cell, A* buffer) {
  constexpr int kLanes = Bytes / int(sizeof(A));
  using V = Vector<A, kLanes>;
  const std::int64_t map = std::int64_t(height) * width;
  const Taps<A>&x = grid.x, &y = grid.y;
  // A few samples of a wide row: interpolate only where they fall.
  const bool sparse = x.last - x.first > 4 * cells.columns();
  for (int i = cells.first_row; i < cells.last_row; ++i) {
    const T* low = in + std::int64_t(y.low[i]) * width;
    const T* high = in + std::int64_t(y.high[i]) * width;
    const A weight = y.weight[i];
    Out* target = out + std::int64_t(i - cells.first_row) * cells.columns() * out_cell;
    if (sparse) {
      for (int l = 0; l < planes; ++l) {
        const T *a = low + l * map, *b = high + l * map;
        for (int j = cells.first_column; j < cells.last_column; ++j) {
          const auto at = [&](int k) DENSESIAM_INLINE {
            return mix(A(to_float(a[k])), A(to_float(b[k])), weight);
          };
          target[l * out_plane + (j - cells.first_column) * out_cell] =
              from_float<Out>(mix(at(x.low[j]), at(x.high[j]), x.weight[j]));
        }
      }
      continue;
    }
    for (int l = 0; l < planes; l += kLanes) {
      const int some = std::min(kLanes, planes - l);
      turn_row<kLanes>(some, x.first, x.last + 1, buffer,
                       [&](auto& value, int plane, int column) DENSESIAM_INLINE {
                         std::decay_t<decltype(value)> upper, lower;
                         load_vector(low + (l + plane) * map + column, upper);
                         load_vector(high + (l + plane) * map + column, lower);
                         value = mix(upper, lower, weight);
                       });
      const auto combine = [&](V& value, int j) DENSESIAM_INLINE {
        V left, right;
        std::memcpy(&left, buffer + std::int64_t(x.low[j]) * kLanes, sizeof(V));
        std::memcpy(&right, buffer + std::int64_t(x.high[j]) * kLanes, sizeof(V));
        value = mix(left, right, x.weight[j]);
      };
      if (out_cell == 1) {
        write_planes<kLanes, A>(some, cells.first_column, cells.last_column, target + l * out_plane,
                                out_plane, combine);
        continue;
      }
      for (int j = cells.first_column; j < cells.last_column; ++j) {
        V value;
        combine(value, j);
        Out* const cell = target + l + (j - cells.first_column) * out_cell;
        if (some == kLanes) {
          store_vector(value, cell);
        } else {
          for (int k = 0; k < some; ++k) cell[k] = from_float<Out>(value[k]);
        }
      }
    }
  }
}

// Samples of one image whose channels lie side by side: out[cell * channels + c].
template <class T, class Out, class A>
DENSESIAM_HD void sample_pixels(const T* in, std::int64_t channels, int width,
                                const Grid<Taps, A>& grid, const Cells& cells, Out* out) {
  const Taps<A>&x = grid.x, &y = grid.y;
  for (int i = cells.first_row; i < cells.last_row; ++i) {
    const T* low = in + std::int64_t(y.low[i]) * width * channels;
    const T* high = in + std::int64_t(y.high[i]) * width * channels;
    const A vertical = y.weight[i];
    for (int j = cells.first_column; j < cells.last_column; ++j) {
      const T* __restrict a = low + x.low[j] * channels;
      const T* __restrict b = low + x.high[j] * channels;
      const T* __restrict c = high + x.low[j] * channels;
      const T* __restrict d = high + x.high[j] * channels;
      Out* __restrict target = out;
      const A horizontal = x.weight[j];
      for (std::int64_t k = 0; k < channels; ++k) {
        target[k] =
            from_float<Out>(mix(mix(A(to_float(a[k])), A(to_float(c[k])), vertical),
                                mix(A(to_float(b[k])), A(to_float(d[k])), vertical), horizontal));
      }
      out += channels;
    }
  }
}

// Gradients of the samples of one image on their way into a gather: in the layout of the map,
template <class T>
struct SampleGradients {
  const T* values;
  static constexpr bool kScaled = false;

  DENSESIAM_HD SampleGradients of_image(std::int64_t image, std::int64_t, std::int64_t size) const {
    return {values + image * size};
  }
};

// or with channels side by side whatever that is, (Kh, Kw, C), each still to be multiplied by its
// cell's number.
template <class A>
struct ScaledGradients {
  const A* values;
  const A* scales;  // [Kh, Kw]
  static constexpr bool kScaled = true;

  DENSESIAM_HD ScaledGradients of_image(std::int64_t image, std::int64_t cells,
                                        std::int64_t size) const {
    return {values + image * size, scales + image * cells};
  }
};

// Gradient of a few planes of one image from `channel` on, rows [first_row, last_row) of it, from
// that of its samples (rows x columns a plane). `buffer` holds columns * kGroup numbers.
template <int Bytes, class Gradients, class Out, class A>
DENSESIAM_HD void gather_planes(const Gradients& grad, std::int64_t channels, std::int64_t channel,
                                int planes, int rows, int columns, int width,
                                const Grid<Touching, A>& grid, int first_row, int last_row,
                                Out* out, std::int64_t out_plane, A* buffer) {
  constexpr int kLanes = Bytes / int(sizeof(A));
  using V = Vector<A, kLanes>;
  const std::int64_t cells = std::int64_t(rows) * columns;
  const Touching<A>&x = grid.x, &y = grid.y;
  for (int r = first_row; r < last_row; ++r) {
    Out* target = out + std::int64_t(r) * width;
    const int begin = y.start[r], end = y.start[r + 1];
    if (begin == end) {
      for (int l = 0; l < planes; ++l) {
        std::fill_n(target + l * out_plane, width, from_float<Out>(A(0)));
      }
      continue;
    }
    for (int l = 0; l < planes; l += kLanes) {
      const int some = std::min(kLanes, planes - l);
      if constexpr (Gradients::kScaled) {
        for (int column = 0; column < columns; ++column) {
          V sum{};
          for (int e = begin; e < end; ++e) {
            const std::int64_t cell = std::int64_t(y.cell[e]) * columns + column;
            V sample;
            load_planes(grad.values + cell * channels + channel + l, some, sample);
            sum += y.share[e] * grad.scales[cell] * sample;
          }
          std::memcpy(buffer + std::int64_t(column) * kLanes, &sum, sizeof(V));
        }
      } else {
        turn_row<kLanes>(some, 0, columns, buffer,
                         [&](auto& value, int plane, int column) DENSESIAM_INLINE {
                           value = std::decay_t<decltype(value)>{};
                           for (int e = begin; e < end; ++e) {
                             std::decay_t<decltype(value)> row;
                             load_vector(grad.values + (channel + l + plane) * cells +
                                             std::int64_t(y.cell[e]) * columns + column,
                                         row);
                             value += y.share[e] * row;
                           }
                         });
      }
      write_planes<kLanes, A>(some, 0, width, target + l * out_plane, out_plane,
                              [&](V& value, int pixel) DENSESIAM_INLINE {
                                value = V{};
                                for (int e = x.start[pixel]; e < x.start[pixel + 1]; ++e) {
                                  V sample;
                                  std::memcpy(&sample, buffer + std::int64_t(x.cell[e]) * kLanes,
                                              sizeof(V));
                                  value += x.share[e] * sample;
                                }
                              });
    }
  }
}

// The same for one row of an image whose channels lie side by side. `row` holds columns * channels
// numbers, `sums` channels.
template <class Gradients, class Out, class A>
DENSESIAM_HD void gather_pixels(const Gradients& grad, std::int64_t channels, int columns,
                                int width, const Grid<Touching, A>& grid, int pixel_row, Out* out,
                                A* __restrict row, A* __restrict sums) {
  const Touching<A>&x = grid.x, &y = grid.y;
  const int begin = y.start[pixel_row], end = y.start[pixel_row + 1];
  if (begin == end) {
    std::fill_n(out, width * channels, from_float<Out>(A(0)));
    return;
  }
  const std::int64_t length = columns * channels, run = Gradients::kScaled ? channels : length;
  std::fill_n(row, length, A(0));
  for (int e = begin; e < end; ++e) {
    std::int64_t cell = std::int64_t(y.cell[e]) * columns;
    const auto* __restrict source = grad.values + cell * channels;
    for (std::int64_t start = 0; start < length; start += run, ++cell) {
      A share = y.share[e];
      if constexpr (Gradients::kScaled) share *= grad.scales[cell];
      for (std::int64_t j = start; j < start + run; ++j) row[j] += share * to_float(source[j]);
    }
  }
  for (int pixel = 0; pixel < width; ++pixel) {
    Out* __restrict target = out + pixel * channels;
    for (std::int64_t k = 0; k < channels; ++k) sums[k] = A(0);
    for (int e = x.start[pixel]; e < x.start[pixel + 1]; ++e) {
      const A* __restrict source = row + x.cell[e] * channels;
      const A share = x.share[e];
      for (std::int64_t k = 0; k < channels; ++k) sums[k] += share * source[k];
    }
    for (std::int64_t k = 0; k < channels; ++k) target[k] = from_float<Out>(sums[k]);
  }
}

// How a map of (B, channels, rows, ...) is shared out to threads: planar maps by groups of channels
// and bands of rows, channels-last maps by rows.
struct Pieces {
  std::int64_t batch, channels;
  int rows;
  Layout layout;
  static constexpr int kBand = 32;

  std::int64_t groups() const {
    return layout == Layout::planar ? ceil_divide(channels, kGroup) * ceil_divide(rows, kBand)
                                    : rows;
  }
  std::int64_t count() const { return batch * groups(); }
  std::int64_t image(std::int64_t piece) const { return piece / groups(); }
  std::int64_t first_channel(std::int64_t piece) const {
    return layout == Layout::planar ? piece % groups() / ceil_divide(rows, kBand) * kGroup : 0;
  }
  int planes(std::int64_t piece) const {
    return int(std::min<std::int64_t>(kGroup, channels - first_channel(piece)));
  }
  int first_row(std::int64_t piece) const {
    return layout == Layout::planar ? int(piece % groups() % ceil_divide(rows, kBand)) * kBand
                                    : int(piece % groups());
  }
  int last_row(std::int64_t piece) const {
    return layout == Layout::planar ? std::min(rows, first_row(piece) + kBand)
                                    : first_row(piece) + 1;
  }
  std::int64_t cost(int columns) const {
    return layout == Layout::planar ? std::int64_t(kGroup) * kBand * columns : channels * columns;
  }
};

// The gradient (B, C, height, width) of maps, in that layout, from that of their samples (B, C,
// rows, columns). `boxes` as in Grid.
template <class Gradients, class Out>
void gather_maps(const Gradients& gradients, const std::optional<Tensor>& boxes, std::int64_t batch,
                 std::int64_t channels, int height, int width, int rows, int columns, Layout layout,
                 Out* out) {
  using A = Accumulate<Out>;
  const Pieces pieces{batch, channels, height, layout};
  const std::int64_t map = std::int64_t(height) * width, cells = std::int64_t(rows) * columns;
  parallel_blocks(pieces.count(), pieces.cost(width), [&](std::int64_t begin, std::int64_t end) {
    const bool planar = layout == Layout::planar;
    Scratch<A> buffer(columns * (planar ? std::int64_t(kGroup) : channels));
    Scratch<A> sums(planar ? 0 : channels);
    Grid<Touching, A> grid;
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t image = pieces.image(piece), channel = pieces.first_channel(piece);
      const int row = pieces.first_row(piece);
      const Gradients grad = gradients.of_image(image, cells, cells * channels);
      grid.build(boxes, image, columns, width, rows, height);
      vectorised([&](auto vector_width) DENSESIAM_INLINE {
        if (planar) {
          gather_planes<vector_width()>(
              grad, channels, channel, pieces.planes(piece), rows, columns, width, grid, row,
              pieces.last_row(piece), out + (image * channels + channel) * map, map, buffer.data());
        } else {
          gather_pixels(grad, channels, columns, width, grid, row,
                        out + (image * map + std::int64_t(row) * width) * channels, buffer.data(),
                        sums.data());
        }
      });
    }
  });
}

}  // namespace densesiam
