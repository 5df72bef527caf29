// Tiles: all channels of a few neighbouring pixels of one image, one row a channel.
//
// Reductions over channels then run over rows, and vectorise over pixels, whatever the layout and
// the type of the map. A planar map that needs no conversion is its own tile; otherwise the tile is
// written to working memory that stays in the cache.
#pragma once

#include <cstdint>
#include <utility>

#include "../../host.h"
#include "parallel.h"

namespace densesiam {

// Pixels a tile. Rows this long keep memory streaming, and C of them fit into the L2 cache.
constexpr int kTile = 256;

// Elements between the rows of a tile in working memory: rows a power of two apart would compete
// for a few sets of the L1 cache.
constexpr int kTileStride = kTile + 16;

// Element (channel, pixel) at data[channel * stride + pixel].
template <class A>
struct Tile {
  A* data;
  std::int64_t stride;

  DENSESIAM_HD A* row(std::int64_t channel) const { return data + channel * stride; }
};

// (B, C, P) and how it is cut into tiles of `length` pixels: never across images.
struct Tiling {
  std::int64_t batch, channels, pixels;
  int length = kTile;
  std::int64_t tiles_per_image = ceil_divide(pixels, length);

  std::int64_t tiles() const { return batch * tiles_per_image; }
  std::int64_t image(std::int64_t tile) const { return tile / tiles_per_image; }
  std::int64_t start(std::int64_t tile) const { return tile % tiles_per_image * length; }
  int count(std::int64_t tile) const {
    return int(std::min<std::int64_t>(length, pixels - start(tile)));
  }
};

// One pixel an image reads the same in both layouts: take the one whose rows are long.
inline Layout kernel_layout(Layout layout, const Tiling& tiling) {
  return tiling.pixels == 1 ? Layout::pixels : layout;
}

// Asks memory for part `part` of the `channels` equal parts of a tile, which will be read soon: for
// a row of planes, or for as many elements of a tile that is one run.
template <class T>
DENSESIAM_HD void fetch_part(const T* image, std::int64_t channels, std::int64_t pixels,
                             Layout layout, std::int64_t start, int count, std::int64_t part) {
  constexpr int kLine = 64 / int(sizeof(T));
  const T* first =
      image + (layout == Layout::planar ? part * pixels + start : start * channels + part * count);
  for (int i = 0; i < count; i += kLine) __builtin_prefetch(first + i);
  __builtin_prefetch(first + count - 1);  // a line of its own, unless rows begin with a line
}

template <class A, int Lanes>
struct VectorOf {
  typedef A type __attribute__((vector_size(Lanes * sizeof(A))));
};
template <class A, int Lanes>
using Vector = typename VectorOf<A, Lanes>::type;

template <class V, class T>
DENSESIAM_HD void load_vector(const T* source, V& result) {
  using A = Accumulate<T>;
  constexpr int kLanes = sizeof(V) / sizeof(A);
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(&result, source, sizeof(V));
  } else {
    A lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = to_float(source[lane]);
    std::memcpy(&result, lanes, sizeof(V));
  }
}

template <class V, class T>
DENSESIAM_HD void store_vector(const V& value, T* target) {
  using A = Accumulate<T>;
  constexpr int kLanes = sizeof(V) / sizeof(A);
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(target, &value, sizeof(V));
  } else {
    for (int lane = 0; lane < kLanes; ++lane) target[lane] = from_float<T>(value[lane]);
  }
}

// One step of a transposition: rows i and i + Step exchange the Step x Step blocks off the
// diagonal.
template <int Step, class V, std::size_t... Lane>
DENSESIAM_HD void exchange(V& low, V& high, std::index_sequence<Lane...>) {
  constexpr int kLanes = sizeof...(Lane);
  const V a = low, b = high;
  low = __builtin_shufflevector(a, b, (Lane & Step ? kLanes + Lane - Step : Lane)...);
  high = __builtin_shufflevector(a, b, (Lane & Step ? kLanes + Lane : Lane + Step)...);
}

template <int Lanes, int Step = 1, class V>
DENSESIAM_HD void transpose_square(V* rows) {
  if constexpr (Step < Lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < Lanes; ++i) {
      if (!(i & Step)) exchange<Step>(rows[i], rows[i + Step], std::make_index_sequence<Lanes>{});
    }
    transpose_square<Lanes, 2 * Step>(rows);
  }
}

// target[c * target_stride + r] = source[r * source_stride + c], converted between storage and
// arithmetic types on the way.
template <int Bytes, class From, class To>
DENSESIAM_HD void transpose(const From* source, std::int64_t source_stride, std::int64_t rows,
                            std::int64_t columns, To* target, std::int64_t target_stride) {
  using A = Accumulate<From>;
  constexpr int kLanes = Bytes / int(sizeof(A));
  using V = Vector<A, kLanes>;
  if (rows < kLanes || columns < kLanes) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        target[c * target_stride + r] = from_float<To>(to_float(source[r * source_stride + c]));
      }
    }
    return;
  }
  // The last squares overlap their neighbours instead of leaving single rows and columns.
  for (std::int64_t row = 0; row < rows; row += kLanes) {
    const std::int64_t r = std::min(row, rows - kLanes);
    for (std::int64_t column = 0; column < columns; column += kLanes) {
      const std::int64_t c = std::min(column, columns - kLanes);
      V square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) load_vector(source + (r + i) * source_stride + c, square[i]);
      transpose_square<kLanes>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        store_vector(square[i], target + (c + i) * target_stride + r);
      }
    }
  }
}

// Writes the tile of pixels [start, start + count) of one image to working memory of channels *
// kTileStride numbers.
template <int Bytes, class T>
DENSESIAM_HD void copy_tile(const T* image, std::int64_t channels, std::int64_t pixels,
                            Layout layout, std::int64_t start, int count, Accumulate<T>* memory) {
  if (layout == Layout::pixels) {
    transpose<Bytes>(image + start * channels, channels, count, channels, memory, kTileStride);
    return;
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    const T* __restrict from = image + c * pixels + start;
    Accumulate<T>* __restrict to = memory + c * kTileStride;
    for (int i = 0; i < count; ++i) to[i] = to_float(from[i]);
  }
}

// That tile, where it lies if it can be read there.
template <int Bytes, class T>
DENSESIAM_HD Tile<const Accumulate<T>> load_tile(const T* image, std::int64_t channels,
                                                 std::int64_t pixels, Layout layout,
                                                 std::int64_t start, int count,
                                                 Accumulate<T>* memory) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    if (layout == Layout::planar) return {image + start, pixels};
  }
  copy_tile<Bytes>(image, channels, pixels, layout, start, count, memory);
  return {memory, kTileStride};
}

// The reverse of copy_tile: writes a tile of working memory to one image.
template <int Bytes, class T>
DENSESIAM_HD void store_tile(const Accumulate<T>* memory, std::int64_t channels,
                             std::int64_t pixels, Layout layout, std::int64_t start, int count,
                             T* image) {
  if (layout == Layout::pixels) {
    transpose<Bytes>(memory, kTileStride, int(channels), count, image + start * channels, channels);
    return;
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    const Accumulate<T>* __restrict from = memory + c * kTileStride;
    T* __restrict to = image + c * pixels + start;
    for (int i = 0; i < count; ++i) to[i] = from_float<T>(from[i]);
  }
}

// Calls body(first, length) with a compile-time length, on groups of at most Lanes that cover
// [0, count). The last group overlaps its neighbour instead of leaving single elements, so body
// must give the same result when it is called twice.
template <int Lanes, class Body>
DENSESIAM_HD void for_groups(std::int64_t count, const Body& body) {
  if constexpr (Lanes == 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i, std::integral_constant<int, 1>{});
  } else if (count < Lanes) {
    for_groups<Lanes / 2>(count, body);
  } else {
    std::int64_t i = 0;
    for (; i + Lanes <= count; i += Lanes) body(i, std::integral_constant<int, Lanes>{});
    if (i < count) body(count - Lanes, std::integral_constant<int, Lanes>{});
  }
}

// Zeros in the `count` pixels of an image (C, P) that a tile has, from `start`.
template <class T>
void zero_tile(T* image, std::int64_t channels, std::int64_t pixels, Layout layout,
               std::int64_t start, int count) {
  if (layout == Layout::pixels) {
    std::fill_n(image + start * channels, count * channels, T());
    return;
  }
  for (std::int64_t c = 0; c < channels; ++c) std::fill_n(image + c * pixels + start, count, T());
}

}  // namespace densesiam
