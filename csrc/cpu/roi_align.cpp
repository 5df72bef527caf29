// roi_align on the CPU. The samples are separable: the mean over a cell is rows of the map, each
// times its share, summed, and of that row the same with columns. So a box is two short lists of
// (cell, pixel, share), and a pixel is read once a cell, however many points lie around it.
//
// Backward owns pixels instead of boxes: a thread has a band of rows of some channels of one image,
// and adds to it what each box of that image gives, in the order of the boxes. No atomics, and the
// same bits however the work is shared out.
//
// All loops run across channels. They lie side by side in channels-last maps; of a planar map a few
// channels are transposed into working memory on the way in, and back on the way out.
#include <vector>

#include "../args.h"
#include "../roi_geometry.h"
#include "support/simd.h"
#include "support/tiles.h"

namespace densesiam {
namespace {

// What one axis of a box takes: each cell's pixels with their shares, and each pixel's cells.
template <class A>
struct Shares {
  std::vector<int> start;  // of each cell, in the two below
  std::vector<int> place;  // which of `pixels`
  std::vector<A> share;
  std::vector<int> pixels;  // those that any cell takes
  std::vector<int> touch;   // start of each pixel in the two below
  std::vector<int> cell;
  std::vector<A> part;

  // Shares are divided by `count`.
  template <class C>
  void build(const RoiAxis<C>& axis, C count) {
    start.assign(1, 0);
    place.clear();
    share.clear();
    pixels.clear();
    if (int(slot_.size()) < axis.extent) {
      sums_.resize(axis.extent, 0);
      slot_.resize(axis.extent, -1);
    }
    const PointRange on_map = points_on_map(axis);
    for (int c = 0; c < axis.cells; ++c) {
      const PointRange points = points_of_cell(axis, on_map, c);
      int first = axis.extent, last = -1;
      for (int i = points.begin; i < points.end; ++i) {
        const RoiTap<C> tap = roi_tap(axis, c, i);
        if (!tap.counts) continue;
        sums_[tap.low] += A(C(1) - tap.weight);
        sums_[tap.high] += A(tap.weight);
        first = std::min(first, tap.low);
        last = std::max(last, tap.high);
      }
      for (int pixel = first; pixel <= last; ++pixel) {
        if (sums_[pixel] == A(0)) continue;
        if (slot_[pixel] < 0) {
          slot_[pixel] = int(pixels.size());
          pixels.push_back(pixel);
        }
        place.push_back(slot_[pixel]);
        share.push_back(sums_[pixel] / A(count));
        sums_[pixel] = A(0);
      }
      start.push_back(int(place.size()));
    }
    for (const int pixel : pixels) slot_[pixel] = -1;
  }

  // The same by pixels.
  void turn() {
    touch.assign(pixels.size() + 1, 0);
    for (const int at : place) ++touch[at + 1];
    for (std::size_t p = 0; p < pixels.size(); ++p) touch[p + 1] += touch[p];
    cell.resize(place.size());
    part.resize(place.size());
    next_.assign(touch.begin(), touch.end() - 1);
    for (int c = 0; c + 1 < int(start.size()); ++c) {
      for (int e = start[c]; e < start[c + 1]; ++e) {
        const int at = next_[place[e]]++;
        cell[at] = c;
        part[at] = share[e];
      }
    }
  }

 private:
  std::vector<A> sums_;    // of each pixel of the axis, 0 between calls
  std::vector<int> slot_;  // -1 between calls
  std::vector<int> next_;
};

// The boxes of a call, sorted by image: an integer a box and one an image. Neither the boxes' type
// nor that of coordinates is a parameter: whatever holds a loop over channels is compiled once for
// a map.
class Rois {
 public:
  Rois(const char* op, const Tensor& boxes, std::int64_t images, ScalarType features, double scale,
       std::int64_t sampling_ratio, bool aligned, std::int64_t rows, std::int64_t columns,
       std::int64_t height, std::int64_t width)
      : boxes_(in_layout(boxes, Layout::planar)),
        double_boxes_(is_double(op, boxes_.scalar_type())),
        double_coordinates_(double_boxes_ || features == ScalarType::Double),
        aligned_(aligned),
        scale_(scale),
        sampling_ratio_(int(std::max<std::int64_t>(sampling_ratio, 0))),
        rows_(int(rows)),
        columns_(int(columns)),
        height_(int(height)),
        width_(int(width)),
        start_(images + 1),
        order_(boxes.size(0)) {
    const std::int64_t count = boxes.size(0);
    for (std::int64_t r = 0; r < count; ++r) {
      for (int k = 0; k < 5; ++k) {
        check(value(r, k) - value(r, k) == 0, op, ": boxes must be finite, and box ", r, " is not");
      }
      check(value(r, 0) > -1 && value(r, 0) < double(images), op,
            ": the first column of boxes must be an image from 0 to ", images - 1,
            ", and that of box ", r, " is not");
      ++start_[image(r) + 1];
    }
    for (std::int64_t i = 0; i < images; ++i) start_[i + 1] += start_[i];
    std::vector<std::int64_t> next(start_.begin(), start_.end() - 1);
    for (std::int64_t r = 0; r < count; ++r) order_[next[image(r)]++] = r;
  }

  std::int64_t count() const { return std::int64_t(order_.size()); }
  std::int64_t image(std::int64_t r) const { return std::int64_t(value(r, 0)); }
  std::int64_t begin(std::int64_t image) const { return start_[image]; }
  std::int64_t end(std::int64_t image) const { return start_[image + 1]; }
  std::int64_t at(std::int64_t place) const { return order_[place]; }

  // The lists of both axes of box r, the mean's division in those of y.
  template <class A>
  void build(std::int64_t r, Shares<A>& y, Shares<A>& x) const {
    with_axes(r, [&](const auto& of_y, const auto& of_x) {
      using C = std::decay_t<decltype(of_y.cell)>;
      y.build(of_y, std::max(C(1), C(of_y.points) * C(of_x.points)));
      x.build(of_x, C(1));
    });
  }

  // Whether box r may touch the rows [first, last).
  bool touches(std::int64_t r, int first, int last) const {
    bool result;
    with_axes(r, [&](const auto& y, const auto&) {
      using C = std::decay_t<decltype(y.cell)>;
      const PointRange points = roi_points(y, C(first) - C(1), C(last));
      result = points.begin < points.end;
    });
    return result;
  }

  // About how many pixels the boxes of an image cover; it stops at `enough`.
  std::int64_t covered(std::int64_t image, std::int64_t enough) const {
    std::int64_t pixels = 0;
    for (std::int64_t b = begin(image); b < end(image) && pixels < enough; ++b) {
      with_axes(at(b), [&](const auto& y, const auto& x) { pixels += length(y) * length(x); });
    }
    return pixels;
  }

 private:
  static bool is_double(const char* op, ScalarType type) {
    return dispatch_box(
        op, type, [](auto box) { return std::is_same_v<typename decltype(box)::type, double>; });
  }

  double value(std::int64_t r, int k) const {
    return double_boxes_ ? data<double>(boxes_)[5 * r + k] : data<float>(boxes_)[5 * r + k];
  }

  template <class C>
  static std::int64_t length(const RoiAxis<C>& axis) {
    // In this order of a box that scales to NaN it is the extent.
    return std::int64_t(std::min(C(axis.extent), std::fabs(axis.cell) * C(axis.cells) + C(1)));
  }

  template <class Body>
  void with_axes(std::int64_t r, const Body& body) const {
    if (double_coordinates_) {
      body(axis<double>(r, 2, rows_, height_), axis<double>(r, 1, columns_, width_));
    } else {
      body(axis<float>(r, 2, rows_, height_), axis<float>(r, 1, columns_, width_));
    }
  }

  template <class C>
  RoiAxis<C> axis(std::int64_t r, int edge, int cells, int extent) const {
    const RoiRules<C> rules{C(scale_), sampling_ratio_, aligned_};
    return roi_axis(C(value(r, edge)), C(value(r, edge + 2)), cells, extent, rules);
  }

  Tensor boxes_;
  bool double_boxes_, double_coordinates_, aligned_;
  double scale_;
  int sampling_ratio_, rows_, columns_, height_, width_;
  std::vector<std::int64_t> start_, order_;
};

// Calls body(first, lanes) on groups of channels that cover [0, count) and do not overlap.
template <int Lanes, int Next, class Body>
DENSESIAM_HD void for_channels(std::int64_t count, const Body& body) {
  std::int64_t c = 0;
  for (; c + Lanes <= count; c += Lanes) body(c, std::integral_constant<int, Lanes>{});
  for (; c + Next <= count; c += Next) body(c, std::integral_constant<int, Next>{});
  for (; c < count; ++c) body(c, std::integral_constant<int, 1>{});
}

constexpr int kVectors = 4;                // at once: what one share is loaded for
constexpr int kMostLanes = kVectors * 16;  // of float, on AVX-512

// Neighbouring channels in registers.
template <class A, int Lanes, int Hardware>
struct Channels {
  static constexpr int kWide = Lanes < Hardware ? Lanes : Hardware, kCount = Lanes / kWide;
  using V = Vector<A, kWide>;
  V values[kCount] = {};

  template <class T>
  DENSESIAM_HD void add(A share, const T* source) {
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      V value;
      load_vector(source + k * kWide, value);
      values[k] += share * value;
    }
  }
  template <class T>
  DENSESIAM_HD void load(const T* source) {
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) load_vector(source + k * kWide, values[k]);
  }
  template <class T>
  DENSESIAM_HD void store(T* target) const {
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) store_vector(values[k], target + k * kWide);
  }
};

// Where numbers lie whose channels are side by side: a map, or the cells of a box.
template <class T>
struct Side {
  T* data;
  std::int64_t pixel, row;  // elements from one to the next
};

// Row i of a box's cells. Row `rows.pixels[p]` of the map begins, at its column `left`, at
// in + reach[e] for the entries e of that row. `buffer` holds kMostLanes numbers for each of
// columns.pixels.
template <int Bytes, class T, class Out, class A>
DENSESIAM_HD void pool_row(const T* in,                                    // [H, W, lanes]
                           std::int64_t pixel, const std::int64_t* reach,  // [entries]
                           int left, std::int64_t channels, const Shares<A>& rows,
                           const Shares<A>& columns, int i,
                           A* buffer,            // [columns of the map, lanes]
                           const Side<Out>& out  // [Kw, lanes]
) {
  constexpr int kHardware = Bytes / int(sizeof(A));
  const int taken = int(columns.pixels.size()), cells = int(columns.start.size()) - 1;
  for_channels<kVectors * kHardware, kHardware>(
      channels, [&](std::int64_t first, auto lanes) DENSESIAM_INLINE {
        constexpr int kLanes = lanes();
        for (int p = 0; p < taken; ++p) {
          const T* column = in + (columns.pixels[p] - left) * pixel + first;
          Channels<A, kLanes, kHardware> sum;
          for (int e = rows.start[i]; e < rows.start[i + 1]; ++e) {
            sum.add(rows.share[e], column + reach[e]);
          }
          sum.store(buffer + p * kLanes);
        }
        for (int j = 0; j < cells; ++j) {
          Channels<A, kLanes, kHardware> sum;
          for (int e = columns.start[j]; e < columns.start[j + 1]; ++e) {
            sum.add(columns.share[e], buffer + columns.place[e] * kLanes);
          }
          sum.store(out.data + i * out.row + j * out.pixel + first);
        }
      });
}

// Adds what the cells of a box give to the rows [first_row, last_row) of a map, which begins with
// first_row. `buffer` holds kMostLanes numbers for each
// cell of a row.
template <int Bytes, class T, class A>
DENSESIAM_HD void spread_box(const Side<const T>& grad,  // [Kh, Kw, C]
                             std::int64_t channels, const Shares<A>& rows, const Shares<A>& columns,
                             int first_row, int last_row, A* buffer,  // [columns of the map, C]
                             const Side<A>& map                       // [H, W, C]
) {
  constexpr int kHardware = Bytes / int(sizeof(A));
  const int cells = int(columns.start.size()) - 1;
  for_channels<kVectors * kHardware, kHardware>(
      channels, [&](std::int64_t first, auto lanes) DENSESIAM_INLINE {
        constexpr int kLanes = lanes();
        for (std::size_t y = 0; y < rows.pixels.size(); ++y) {
          if (rows.pixels[y] < first_row || rows.pixels[y] >= last_row) continue;
          A* target = map.data + (rows.pixels[y] - first_row) * map.row + first;
          for (int j = 0; j < cells; ++j) {
            Channels<A, kLanes, kHardware> sum;
            for (int e = rows.touch[y]; e < rows.touch[y + 1]; ++e) {
              sum.add(rows.part[e], grad.data + rows.cell[e] * grad.row + j * grad.pixel + first);
            }
            sum.store(buffer + j * kLanes);
          }
          for (std::size_t x = 0; x < columns.pixels.size(); ++x) {
            Channels<A, kLanes, kHardware> sum;
            sum.load(target + columns.pixels[x] * map.pixel);
            for (int e = columns.touch[x]; e < columns.touch[x + 1]; ++e) {
              sum.add(columns.part[e], buffer + columns.cell[e] * kLanes);
            }
            sum.store(target + columns.pixels[x] * map.pixel);
          }
        }
      });
}

// Numbers of working memory that stay in a core's own caches.
constexpr std::int64_t kWorking = 1 << 16;

// Channels that one piece of work has: whole vectors, and many where they fit for that many pixels,
// since the lists of a box are made for each piece.
inline std::int64_t channels_at_once(std::int64_t channels, std::int64_t pixels) {
  const std::int64_t fit = kWorking / pixels / 16 * 16;
  return std::min(channels, std::max<std::int64_t>(16, std::min<std::int64_t>(64, fit)));
}

template <class T>
void pool_planes(const T* in,  // [B, C, H, W]
                 const Rois& rois, std::int64_t images, std::int64_t channels, int height,
                 int width, int rows, int columns, T* out  // [R, C, Kh, Kw]
) {
  using A = Accumulate<T>;
  const std::int64_t map = std::int64_t(height) * width, cells = std::int64_t(rows) * columns;
  const std::int64_t most = channels_at_once(channels, map), groups = ceil_divide(channels, most);
  parallel_blocks(images * groups, most * map, [&](std::int64_t begin, std::int64_t end) {
    Shares<A> x, y;
    std::vector<A> source(1), row, result(most * cells);
    std::vector<std::int64_t> reach;
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t image = piece / groups, channel = piece % groups * most;
      const std::int64_t count = std::min(most, channels - channel);
      const T* planes = in + (image * channels + channel) * map;
      // Boxes that cover half of the map share its transposition, if that fits into a shared cache.
      const bool whole = map * most <= 32 * kWorking && rois.covered(image, map) >= map / 2;
      if (whole) {
        source.resize(map * count);
        vectorised([&](auto bytes) DENSESIAM_INLINE {
          transpose<bytes()>(planes, map, count, map, source.data(), count);
        });
      }
      for (std::int64_t b = rois.begin(image); b < rois.end(image); ++b) {
        const std::int64_t r = rois.at(b);
        rois.build(r, y, x);
        row.resize(x.pixels.size() * kMostLanes);
        reach.resize(y.place.size());
        int left = 0, wide = width;
        if (!whole && !x.pixels.empty()) {
          const auto ends = std::minmax_element(x.pixels.begin(), x.pixels.end());
          wide = std::min(width, std::max(16, *ends.second + 1 - *ends.first));
          left = std::min(*ends.first, width - wide);
        }
        const Side<A> result_cells{result.data(), count, count * columns};
        for (int i = 0; i < rows; ++i) {
          const int first = y.start[i], last = y.start[i + 1];
          if (!whole) source.resize((last - first) * std::int64_t(wide) * count);
          vectorised([&](auto bytes) DENSESIAM_INLINE {
            for (int e = first; e < last; ++e) {
              const std::int64_t at = std::int64_t(y.pixels[y.place[e]]) * width;
              reach[e] = whole ? at * count : (e - first) * std::int64_t(wide) * count;
              if (!whole) {
                transpose<bytes()>(planes + at + left, map, count, wide, source.data() + reach[e],
                                   count);
              }
            }
            pool_row<bytes()>(static_cast<const A*>(source.data()), count, reach.data(), left,
                              count, y, x, i, row.data(), result_cells);
          });
        }
        vectorised([&](auto bytes) DENSESIAM_INLINE {
          transpose<bytes()>(result.data(), count, cells, count,
                             out + (r * channels + channel) * cells, cells);
        });
      }
    }
  });
}

template <class T>
void pool_pixels(const T* in,  // [B, C, H, W]
                 const Rois& rois, std::int64_t channels, int height, int width, int rows,
                 int columns, T* out  // [R, C, Kh, Kw]
) {
  using A = Accumulate<T>;
  const std::int64_t map = std::int64_t(height) * width, cells = std::int64_t(rows) * columns;
  const std::int64_t most = std::min<std::int64_t>(channels, 512);
  const std::int64_t groups = ceil_divide(channels, most);
  parallel_blocks(
      rois.count() * groups, most * cells * 4, [&](std::int64_t begin, std::int64_t end) {
        Shares<A> x, y;
        std::vector<A> row;
        std::vector<std::int64_t> reach;
        for (std::int64_t piece = begin; piece < end; ++piece) {
          const std::int64_t r = rois.at(piece / groups), channel = piece % groups * most;
          rois.build(r, y, x);
          row.resize(x.pixels.size() * kMostLanes);
          reach.clear();
          for (const int p : y.place) reach.push_back(y.pixels[p] * std::int64_t(width) * channels);
          const Side<T> target{out + r * cells * channels + channel, channels, channels * columns};
          vectorised([&](auto bytes) DENSESIAM_INLINE {
            for (int i = 0; i < rows; ++i) {
              pool_row<bytes()>(in + rois.image(r) * map * channels + channel, channels,
                                reach.data(), 0, std::min(most, channels - channel), y, x, i,
                                row.data(), target);
            }
          });
        }
      });
}

// The gradient of maps: each piece has a band of rows of some channels of one image. It is gathered
// where it belongs if channels lie side by side there and need no conversion, else in working
// memory.
template <class T>
void spread_boxes(const T* grad,  // [R, C, Kh, Kw]
                  const Rois& rois, std::int64_t images, std::int64_t channels, int height,
                  int width, int rows, int columns, Layout layout, T* out  // [B, C, H, W]
) {
  using A = Accumulate<T>;
  const bool planar = layout == Layout::planar;
  const bool in_place = !planar && std::is_same_v<T, A>;
  const std::int64_t map = std::int64_t(height) * width, cells = std::int64_t(rows) * columns;
  const std::int64_t most = channels_at_once(channels, map), groups = ceil_divide(channels, most);
  const std::int64_t fit = std::max<std::int64_t>(1, 4 * kWorking / (most * width));
  const int band = int(std::min<std::int64_t>(fit, height)), bands = int(ceil_divide(height, band));
  parallel_blocks(
      images * groups * bands, most * band * width, [&](std::int64_t begin, std::int64_t end) {
        Shares<A> x, y;
        std::vector<A> sums, turned(planar ? most * cells : 0), row(columns * kMostLanes);
        for (std::int64_t piece = begin; piece < end; ++piece) {
          const std::int64_t image = piece / bands / groups;
          const std::int64_t channel = piece / bands % groups * most;
          const std::int64_t count = std::min(most, channels - channel);
          const int first = int(piece % bands) * band, last = std::min(height, first + band);
          const std::int64_t pixels = std::int64_t(last - first) * width;
          T* target = planar
                          ? out + (image * channels + channel) * map + std::int64_t(first) * width
                          : out + (image * map + std::int64_t(first) * width) * channels + channel;
          Side<A> sum{nullptr, count, width * count};
          if constexpr (std::is_same_v<T, A>) {
            if (in_place) {
              sum = {target, channels, width * channels};
              for (std::int64_t p = 0; p < pixels; ++p) {
                std::fill_n(target + p * channels, count, A(0));
              }
            }
          }
          if (!in_place) {
            sums.assign(pixels * count, A(0));
            sum.data = sums.data();
          }
          for (std::int64_t b = rois.begin(image); b < rois.end(image); ++b) {
            const std::int64_t r = rois.at(b);
            if (!rois.touches(r, first, last)) continue;
            rois.build(r, y, x);
            y.turn();
            x.turn();
            vectorised([&](auto bytes) DENSESIAM_INLINE {
              if (planar) {
                transpose<bytes()>(grad + (r * channels + channel) * cells, cells, count, cells,
                                   turned.data(), count);
                const Side<const A> from{turned.data(), count, count * columns};
                spread_box<bytes()>(from, count, y, x, first, last, row.data(), sum);
              } else {
                const Side<const T> from{grad + r * cells * channels + channel, channels,
                                         channels * columns};
                spread_box<bytes()>(from, count, y, x, first, last, row.data(), sum);
              }
            });
          }
          if (in_place) continue;
          vectorised([&](auto bytes) DENSESIAM_INLINE {
            if (planar) {
              transpose<bytes()>(sums.data(), count, pixels, count, target, map);
              return;
            }
            for (std::int64_t p = 0; p < pixels; ++p) {
              for (std::int64_t k = 0; k < count; ++k) {
                target[p * channels + k] = from_float<T>(sums[p * count + k]);
              }
            }
          });
        }
      });
}

Tensor roi_align(const Tensor& features, const Tensor& boxes, std::vector<std::int64_t> size,
                 double spatial_scale, std::int64_t sampling_ratio, bool aligned) {
  check_map("roi_align", "features", features);
  check_rois("roi_align", boxes, features, size, sampling_ratio);
  const Layout layout = layout_of(features);
  const Tensor source = in_layout(features, layout);
  const std::int64_t images = features.size(0), channels = features.size(1);
  const int height = int(features.size(2)), width = int(features.size(3));
  const Rois rois("roi_align", boxes, images, features.scalar_type(), spatial_scale, sampling_ratio,
                  aligned, size[0], size[1], height, width);
  Tensor out = empty_in_layout({boxes.size(0), channels, size[0], size[1]}, layout,
                               features.scalar_type(), features);
  if (out.numel() == 0) return out;
  dispatch_float("roi_align", source.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (layout == Layout::planar) {
      pool_planes(data<T>(source), rois, images, channels, height, width, int(size[0]),
                  int(size[1]), mutable_data<T>(out));
    } else {
      pool_pixels(data<T>(source), rois, channels, height, width, int(size[0]), int(size[1]),
                  mutable_data<T>(out));
    }
  });
  return out;
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale,
                          std::int64_t sampling_ratio, bool aligned, std::vector<std::int64_t> maps,
                          bool channels_last) {
  const char* op = "roi_align_backward";
  check_rois_backward(op, grad, boxes, maps, sampling_ratio);
  const Layout layout = channels_last ? Layout::pixels : Layout::planar;
  const Tensor source = in_layout(grad, layout);
  const Rois rois(op, boxes, maps[0], grad.scalar_type(), spatial_scale, sampling_ratio, aligned,
                  grad.size(2), grad.size(3), maps[1], maps[2]);
  Tensor out =
      empty_in_layout({maps[0], grad.size(1), maps[1], maps[2]}, layout, grad.scalar_type(), grad);
  if (out.numel() == 0) return out;
  dispatch_float(op, source.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    spread_boxes(data<T>(source), rois, maps[0], grad.size(1), int(maps[1]), int(maps[2]),
                 int(grad.size(2)), int(grad.size(3)), layout, mutable_data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("roi_align", TORCH_BOX(&densesiam::roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&densesiam::roi_align_backward));
}
