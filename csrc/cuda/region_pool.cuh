// region_pool: features summed over soft regions, the softmax fused into the matrix product.
//
//   m = softmax over n of logits                      (never in global memory)
//   r[b, n, c] = sum_p m[b, n, p] f[b, c, p],  mass[b, n] = sum_p m[b, n, p]
//   df[b, c, p] = sum_n m[b, n, p] g[b, n, c]
//   dm[b, n, p] = sum_c g[b, n, c] f[b, c, p] + g_mass[b, n]
//   dlogits = m (dm - sum_n m dm)
//
// Three tiled products (products.cuh): on tensor cores, where tf32 holds features of half types
// exactly and rounds masks and gradients to 11 bits, and float32 is the sum of two such numbers;
// float64 on CUDA cores. What a tile is made of next is under way while it is multiplied (Part).
// Forward is split over pixels to fill a GPU; the parts are added up in order, and their number
// follows from shape alone. With at most 128 regions a block holds all of them, finds log sum exp
// on the way and reads the logits once; more take a pass of their own for it.
//
// Mandatory bytes: forward B (N + C) P elements; backward the same read and written. Operations
// 2 B N C P forward, 4 B N C P backward: bound by arithmetic for N = 128, by memory for N = 27 in
// half types.
#pragma once

#include "device/products.cuh"
#include "device/softmax.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

struct RegionShape {
  unsigned batch, channels, regions, pixels;
};

// A (B, rows, P) map in one of the two layouts.
template <bool ChannelsLast, class T>
struct Map {
  static constexpr bool kChannelsLast = ChannelsLast;
  T* base;
  unsigned rows, pixels;

  DENSESIAM_HD T* at(unsigned b, unsigned row, unsigned pixel) const {
    const std::int64_t image = std::int64_t(b) * rows * pixels;
    return base + image + (ChannelsLast ? pixel * rows + row : row * pixels + pixel);
  }
  DENSESIAM_HD bool has(unsigned row, unsigned pixel) const { return row < rows && pixel < pixels; }
};

// Which pack of its line an item of a tile is, and of which line; a line has kPacks packs.
// Neighbouring lanes have neighbouring packs. Where these are no neighbours in shared memory
// (Straight is false), a few lanes make up a sector, and the others go from line to line: to other
// banks.
struct PackPlace {
  unsigned pack, line;

  template <unsigned kPacks, unsigned kBeside, bool Straight>
  static __device__ __forceinline__ PackPlace of(unsigned item) {
    if constexpr (Straight) return {item % kPacks, item / kPacks};
    constexpr unsigned groups = kPacks / kBeside, along = kLanes / kBeside;
    const unsigned group = item / kLanes, lane = item % kLanes;
    return {group % groups * kBeside + lane % kBeside, group / groups * along + lane / kBeside};
  }
};

// Numbers as they lie in memory: 16 bytes of them, or one.
template <bool Packs, class T>
using Raw = std::conditional_t<Packs, Words, Pack<T, 1>>;

template <class T>
__device__ __forceinline__ Pack<T, kPack<T>> unpacked(Words words) {
#ifndef DENSESIAM_EMULATOR
  // A compiler that converts half types right after loading them holds twice as many registers.
  if constexpr (sizeof(T) == 2) {
    asm volatile(""
                 : "+r"(words.values[0]), "+r"(words.values[1]), "+r"(words.values[2]),
                   "+r"(words.values[3])::"memory");
  }
#endif
  Pack<T, kPack<T>> pack;
  std::memcpy(&pack, &words, sizeof(pack));
  return pack;
}
template <class T>
__device__ __forceinline__ Pack<T, 1> unpacked(Pack<T, 1> pack) {
  return pack;
}

// The same number, for what is computed from it here: a compiler that computes it once, before a
// loop, holds it in registers throughout.
__device__ __forceinline__ unsigned here(unsigned value) {
#ifndef DENSESIAM_EMULATOR
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// A Rows x Pixels part of a map on its way between memory and a tile in shared memory. fetch()
// loads it into registers where it is in 16-byte packs (Packs: whether the map can be read so) or
// small, and put() finds it there: what is done between the two is done while memory answers.
// RowsInside: whether rows are neighbours in the tile, else pixels; Stride: from one of the others
// to the next.
template <int Rows, int Pixels, bool Packs, bool RowsInside, int Stride, bool ChannelsLast, class T>
struct Part {
  using A = Accumulate<T>;
  static constexpr int N = Packs ? kPack<T> : 1;
  static constexpr unsigned kItems = Rows * Pixels / N;
  static constexpr bool kHeld = Packs || kItems <= 8 * kThreads;
  static constexpr int kEach = kHeld ? int((kItems + kThreads - 1) / kThreads) : 1;
  static constexpr bool kStraight = ChannelsLast == RowsInside;  // a pack stays one in the tile
  static constexpr unsigned kNextRow = ChannelsLast, kNextPixel = !ChannelsLast;  // within a pack

  const Map<ChannelsLast, const T>& map;
  Raw<Packs, T> held[kEach];

  struct Place {
    unsigned row, pixel;
  };
  static __device__ __forceinline__ Place place(unsigned item) {
    constexpr unsigned length = (ChannelsLast ? Rows : Pixels) / N;
    const PackPlace at = PackPlace::of<length, (N > 1 ? 2 : 8), kStraight>(item);
    return ChannelsLast ? Place{at.pack * N, at.line} : Place{at.line, at.pack * N};
  }
  static __device__ __forceinline__ int in_tile(const Place& at) {
    return RowsInside ? at.pixel * Stride + at.row : at.row * Stride + at.pixel;
  }

  __device__ __forceinline__ Raw<Packs, T> read(unsigned b, unsigned row, unsigned pixel) const {
    if (!map.has(row, pixel)) return {};
    const T* at = map.at(b, row, pixel);
    if constexpr (Packs) return load_words(reinterpret_cast<const Words*>(at));
    if constexpr (!Packs) return load<1>(at);
  }

  __device__ __forceinline__ void fetch(unsigned b, unsigned row0, unsigned pixel0) {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const unsigned item = threadIdx.x + i * kThreads;
        if (kItems % kThreads != 0 && item >= kItems) break;
        const Place at = place(item);
        held[i] = read(b, row0 + at.row, pixel0 + at.pixel);
      }
    }
  }

  // tile = change(row, pixel, value) of each; rows and pixels count from the part's first.
  template <class Change>
  __device__ __forceinline__ void put(unsigned b, unsigned row0, unsigned pixel0, A* tile,
                                      const Change& change) const {
    const auto write = [&](const Place& at, const Raw<Packs, T>& raw) {
      const Pack<T, N> pack = unpacked<T>(raw);
      A* first = tile + in_tile(at);
      constexpr int width = N < kPack<A> ? N : kPack<A>;
#pragma unroll
      for (int n = 0; n < N; n += width) {
        Pack<A, width> some;
#pragma unroll
        for (int w = 0; w < width; ++w) {
          some.values[w] = change(at.row + (n + w) * kNextRow, at.pixel + (n + w) * kNextPixel,
                                  A(to_float(pack.values[n + w])));
        }
        if constexpr (kStraight) {
          *reinterpret_cast<Pack<A, width>*>(first + n) = some;
        } else {
#pragma unroll
          for (int w = 0; w < width; ++w) first[(n + w) * Stride] = some.values[w];
        }
      }
    };
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const unsigned item = threadIdx.x + i * kThreads;
        if (kItems % kThreads != 0 && item >= kItems) break;
        write(place(item), held[i]);
      }
    } else {
#pragma unroll 1
      for (unsigned item = threadIdx.x; item < kItems; item += kThreads) {
        const Place at = place(item);
        write(at, read(b, row0 + at.row, pixel0 + at.pixel));
      }
    }
  }

  // The other way: a part of `out` from a tile.
  static __device__ __forceinline__ void write(const Map<ChannelsLast, T>& out, unsigned b,
                                               unsigned row0, unsigned pixel0, const A* tile) {
#pragma unroll(N > 1 ? 2 : 1)
    for (unsigned item = threadIdx.x; item < kItems; item += kThreads) {
      const Place at = place(item);
      if (!out.has(row0 + at.row, pixel0 + at.pixel)) continue;
      const A* first = tile + in_tile(at);
      Pack<T, N> pack;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        pack.values[n] = from_float<T>(first[kStraight ? n : n * Stride]);
      }
      store<N>(out.at(b, row0 + at.row, pixel0 + at.pixel), pack);
    }
  }
};

// Columns of the products whose rows are regions: 32 to 64 sums a thread, as registers allow.
template <int Regions, class T>
constexpr int kColumns = Regions == 32 || sizeof(T) == 2 ? 128 : 64;

// Pixels of a block of region_pool_logits.
template <int Regions, class T>
constexpr int kPixels = Regions == 32 && sizeof(T) < 8 ? 128 : 64;

constexpr unsigned kMostRegions = 128;  // that a block can hold

// Blocks of few sums a thread that a multiprocessor holds, and of many.
template <int Regions, class T>
constexpr int kTogether = sizeof(T) < 8 && Regions == 32 ? 3 : kBlocks<Accumulate<T>>;

template <bool ChannelsLast, class T>
__global__ void __launch_bounds__(kThreads)
    region_log_sum(Map<ChannelsLast, const T> logits,   // [B, N, P]
                   Accumulate<T>* __restrict__ log_sum  // [B, P]
    ) {
  using A = Accumulate<T>;
  const unsigned tiles = (logits.pixels + kThreads - 1) / kThreads;
  const unsigned b = blockIdx.x / tiles, pixel = blockIdx.x % tiles * kThreads + threadIdx.x;
  if (pixel >= logits.pixels) return;
  LogSumExp<A> sum = LogSumExp<A>::identity();
  for (unsigned n = 0; n < logits.rows; ++n) {
    const A one[1] = {to_float(load(logits.at(b, n, pixel)))};
    sum.add(one);
  }
  store(log_sum + std::int64_t(b) * logits.pixels + pixel, sum.value());
}

// Adds the product of two tiles; the block has voted on what is in them.
template <int StrideA, int StrideB, class Tiles, class A>
__device__ __forceinline__ void multiply(Tiles& product, const Vote& exceptional, const A* a,
                                         const A* b) {
  if constexpr (Tiles::kSplit) {
    if (exceptional.any()) return product.template add_exceptional<StrideA, StrideB>(a, b);
  }
  product.template add<StrideA, StrideB>(a, b);
}

// How the forward is cut: pixels into splits of so many steps, regions and channels into tiles.
struct RegionSplit {
  unsigned splits, steps, region_tiles, channel_tiles;
};

// Parts (splits, B, N, C) and (splits, B, N). `fused`: log_sum is written here, else it is read.
template <int Regions, bool ChannelsLast, bool FeaturePacks, bool LogitPacks, class T>
__global__ void __launch_bounds__(kThreads, kTogether<Regions, T>)
    region_pool_forward(Map<ChannelsLast, const T> features,  // [B, C, P]
                        Map<ChannelsLast, const T> logits,    // [B, N, P]
                        RegionShape shape, RegionSplit split, bool fused,
                        Accumulate<T>* __restrict__ log_sum,    // [B, P]
                        Accumulate<T>* __restrict__ parts,      // [splits, B, N, C]
                        Accumulate<T>* __restrict__ mass_parts  // [splits, B, N]
    ) {
  using A = Accumulate<T>;
  constexpr int depth = kDepth<A>, stride = kStride<A>, columns = kColumns<Regions, T>;
  using Tiles = Product<T, Regions, columns>;
  DENSESIAM_SHARED(A, mask, Regions * stride);    // [region][pixel]
  DENSESIAM_SHARED(A, values, columns * stride);  // [channel][pixel]
  DENSESIAM_SHARED(unsigned, votes, kWarps);
  const Vote vote{votes};
  unsigned block = blockIdx.x;
  const unsigned channel0 = block % split.channel_tiles * columns;
  block /= split.channel_tiles;
  const unsigned region0 = block % split.region_tiles * Regions;
  block /= split.region_tiles;
  const unsigned s = block % split.splits, b = block / split.splits;

  constexpr int group = kThreads / depth;  // lanes that share a pixel's softmax
  constexpr int each = Regions / group;
  const unsigned k = threadIdx.x / group, member = threadIdx.x % group;
  A* const mine = mask + member * stride + k;
  const auto counts = [&](int i) { return region0 + member + i * group < shape.regions; };
  const auto as_it_is = [](unsigned, unsigned, A value) { return value; };
  // Of the masses a thread adds up as many numbers as it has made, those of one region.
  constexpr int sharers = kThreads / Regions;
  const unsigned region = threadIdx.x / sharers;
  const A* const sharers_own = mask + region * stride + threadIdx.x % sharers * each;
  A mass = A(0);
  Tiles product;
  product.clear();
  const unsigned begin = s * split.steps * depth;
  const unsigned limit = begin + split.steps * depth;
  const unsigned end = limit < shape.pixels ? limit : shape.pixels;
  Part<Regions, depth, LogitPacks, false, stride, ChannelsLast, T> logit_part{logits, {}};
  Part<columns, depth, FeaturePacks, false, stride, ChannelsLast, T> feature_part{features, {}};
  logit_part.fetch(b, region0, begin);
  feature_part.fetch(b, channel0, begin);
  for (unsigned pixel0 = begin; pixel0 < end; pixel0 += depth) {
    logit_part.put(b, region0, pixel0, mask, as_it_is);
    bool exceptional = false;
    feature_part.put(b, channel0, pixel0, values, [&](unsigned, unsigned, A value) {
      exceptional |= Tiles::is_exceptional(value);
      return value;  // tf32 holds half types as they are
    });
    __syncthreads();

    const bool inside = pixel0 + k < end;
    const std::int64_t pixel = std::int64_t(b) * shape.pixels + pixel0 + k;
    A x[each];
#pragma unroll
    for (int i = 0; i < each; ++i) x[i] = mine[i * group * stride];
    A scale = A(0);
    if (fused) {
      LogSumExp<A> sum = LogSumExp<A>::identity();
#pragma unroll
      for (int i = 0; i < each; ++i) {
        if (counts(i)) sum.max = larger(sum.max, x[i]);
      }
      Lanes{group}.exchange([&](const auto& other) { sum.max = larger(sum.max, other(sum.max)); });
#pragma unroll
      for (int i = 0; i < each; ++i) {
        x[i] = counts(i) ? exponential(x[i] - sum.max) : A(0);
        sum.sum += x[i];
      }
      Lanes{group}.sum(sum.sum);
      scale = inside ? A(1) / sum.sum : A(0);
      if (inside && member == 0 && channel0 == 0) store(log_sum + pixel, sum.value());
    } else if (inside) {
      const A kept = load(log_sum + pixel);
#pragma unroll
      for (int i = 0; i < each; ++i) x[i] = counts(i) ? exponential(x[i] - kept) : A(0);
      scale = A(1);
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const A value = inside ? x[i] * scale : A(0);  // what is outside may be no number
      mine[i * group * stride] = Tiles::operand(value);
      exceptional |= Tiles::is_exceptional(value);
    }
    if (Tiles::kSplit) vote.cast(exceptional);
    __syncthreads();
    if (pixel0 + depth < end) {
      logit_part.fetch(b, here(region0), pixel0 + depth);
      feature_part.fetch(b, here(channel0), pixel0 + depth);
    }
    if (channel0 == 0) {
#pragma unroll
      for (int i = 0; i < each; ++i) mass += sharers_own[i];
    }
    multiply<stride, stride>(product, vote, mask, values);
    __syncthreads();
  }

  const std::int64_t image = std::int64_t(s) * shape.batch + b;
  product.visit([&](unsigned row, unsigned column, A sum) {
    if (region0 + row >= shape.regions || channel0 + column >= shape.channels) return;
    store(parts + (image * shape.regions + region0 + row) * shape.channels + channel0 + column,
          sum);
  });
  Lanes{sharers}.sum(mass);
  if (channel0 == 0 && threadIdx.x % sharers == 0 && region0 + region < shape.regions) {
    store(mass_parts + image * shape.regions + region0 + region, mass);
  }
}

// The parts of an array, to be added up in order.
template <class A>
struct Parts {
  const A* parts;      // [splits, count]
  std::int64_t count;  // elements
  A* out;              // [count]

  __device__ __forceinline__ void sum(unsigned splits, std::int64_t i) const {
    A total = A(0);
    for (unsigned s = 0; s < splits; ++s) total += load(parts + s * count + i);
    store(out + i, total);
  }
};

// The regions' and the masses' parts, a thread an element.
template <class A>
__global__ void __launch_bounds__(kThreads)
    sum_parts(Parts<A> regions, Parts<A> mass, unsigned splits) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < regions.count) {
    regions.sum(splits, i);
  } else if (i - regions.count < mass.count) {
    mass.sum(splits, i - regions.count);
  }
}

constexpr int kTile = 64;  // pixels and channels of a block of region_pool_features

// Regions: as many of a pixel's masks are held at once; where there are more, each tile of channels
// takes them again. wide: whether `out` can be written in 16-byte packs.
template <int Regions, bool ChannelsLast, bool GradPacks, bool Packs, class T>
__global__ void __launch_bounds__(kThreads, kTogether<32, T>)
    region_pool_features(Map<false, const Accumulate<T>> grad,                   // [B, N, C]
                         Map<ChannelsLast, const T> logits,                      // [B, N, P]
                         const Accumulate<T>* __restrict__ log_sum,              // [B, P]
                         RegionShape shape, bool wide, Map<ChannelsLast, T> out  // [B, C, P]
    ) {
  using A = Accumulate<T>;
  using Tiles = Product<T, kTile, kTile>;
  constexpr int depth = kDepth<A>, stride = kStride<A>, held = Regions + kStride<A> - depth;
  DENSESIAM_SHARED(A, mask, kTile * held);         // [pixel][region]
  DENSESIAM_SHARED(A, gradients, kTile * stride);  // [channel][region]
  DENSESIAM_SHARED(unsigned, votes, kWarps);
  const Vote vote{votes};
  bool exceptional = false;  // of the masks
  const unsigned pixel_tiles = (shape.pixels + kTile - 1) / kTile;
  const unsigned pixel0 = blockIdx.x % pixel_tiles * kTile, b = blockIdx.x / pixel_tiles;
  const A* kept = log_sum + std::int64_t(b) * shape.pixels + pixel0;

  const auto take_mask = [&](unsigned region0) {
    constexpr int most = Packs ? 128 / int(sizeof(T)) : 64;  // as registers allow
    constexpr int rows = Regions < most ? Regions : most;
#pragma unroll 1
    for (int row = 0; row < Regions; row += rows) {
      Part<rows, kTile, Packs, true, held, ChannelsLast, T> part{logits, {}};
      part.fetch(b, region0 + row, pixel0);
      part.put(b, region0 + row, pixel0, mask + row, [&](unsigned region, unsigned pixel, A value) {
        const bool counts = region0 + row + region < shape.regions && pixel0 + pixel < shape.pixels;
        const A share = counts ? exponential(value - load(kept + pixel)) : A(0);
        exceptional |= Tiles::is_exceptional(share);
        return Tiles::operand(share);
      });
    }
  };
  if (shape.regions <= Regions) take_mask(0);
  Part<depth, kTile, GradPacks, true, stride, false, A> part{grad, {}};
  part.fetch(b, 0, 0);
  for (unsigned channel0 = 0; channel0 < shape.channels; channel0 += kTile) {
    Tiles product;
    product.clear();
    for (unsigned region0 = 0; region0 < shape.regions; region0 += depth) {
      if (shape.regions > Regions && region0 % Regions == 0) take_mask(region0);
      bool now = exceptional;
      part.put(b, region0, channel0, gradients, [&](unsigned, unsigned, A value) {
        now |= Tiles::is_exceptional(value);
        return Tiles::operand(value);
      });
      if (Tiles::kSplit) vote.cast(now);
      __syncthreads();
      const bool more = region0 + depth < shape.regions;
      part.fetch(b, more ? region0 + depth : 0, more ? channel0 : channel0 + kTile);
      // Neighbouring columns are written together: they are what is contiguous in the layout.
      const A* masks = mask + region0 % Regions;
      if constexpr (ChannelsLast) {
        multiply<held, stride>(product, vote, masks, gradients);
      } else {
        multiply<stride, held>(product, vote, gradients, masks);
      }
      __syncthreads();
    }
    // Through the gradients' memory, some rows at a time: lanes hold single numbers of many rows.
    constexpr int width = kPack<T>, line = kTile + 8,
                  rows = kTile * stride * sizeof(A) / (line * sizeof(T));
    constexpr int some = rows < kTile ? rows : kTile;
    static_assert(kTile % some == 0 && kTile * width % some == 0);
    T* const staged = reinterpret_cast<T*>(gradients);
#pragma unroll 1
    for (unsigned row0 = 0; row0 < kTile; row0 += some) {
      product.visit([&](unsigned row, unsigned column, A sum) {
        if (row / some * some == row0) staged[row % some * line + column] = from_float<T>(sum);
      });
      __syncthreads();
      for (unsigned item = threadIdx.x; item < some * kTile / width; item += kThreads) {
        const unsigned row = item / (kTile / width), column = item % (kTile / width) * width;
        const unsigned channel = channel0 + (ChannelsLast ? column : row0 + row);
        const unsigned pixel = pixel0 + (ChannelsLast ? row0 + row : column);
        if (!out.has(channel, pixel)) continue;
        const auto pack = *reinterpret_cast<const Pack<T, width>*>(staged + row * line + column);
        if (wide) {
          store<width>(out.at(b, channel, pixel), pack);
        } else {
#pragma unroll
          for (unsigned w = 0; w < width; ++w) {
            const unsigned c = channel + (ChannelsLast ? w : 0), p = pixel + (ChannelsLast ? 0 : w);
            if (out.has(c, p)) store(out.at(b, c, p), pack.values[w]);
          }
        }
      }
      __syncthreads();
    }
  }
}

// FeaturePacks: whether features and the gradient can be read in packs; LogitPacks: the logits.
template <int Regions, bool ChannelsLast, bool FeaturePacks, bool LogitPacks, class T>
__global__ void __launch_bounds__(kThreads,
                                  sizeof(T) == 2 ? kTogether<Regions, T> : kBlocks<Accumulate<T>>)
    region_pool_logits(Map<false, const Accumulate<T>> grad,         // [B, N, C]
                       const Accumulate<T>* __restrict__ grad_mass,  // [B, N] or null
                       Map<ChannelsLast, const T> features,          // [B, C, P]
                       Map<ChannelsLast, const T> logits,            // [B, N, P]
                       const Accumulate<T>* __restrict__ log_sum,    // [B, P]
                       RegionShape shape, Map<ChannelsLast, T> out   // [B, N, P]
    ) {
  using A = Accumulate<T>;
  constexpr int depth = kDepth<A>, stride = kStride<A>, columns = kPixels<Regions, T>;
  using Tiles = Product<T, Regions, columns>;
  constexpr int line = columns + Tiles::kGap;
  constexpr int operands = (Regions + columns) * stride, masks = Regions * line;
  DENSESIAM_SHARED(A, tiles, operands > masks ? operands : masks);
  DENSESIAM_SHARED(A, scratch, Tiles::kParts * line);
  DENSESIAM_SHARED(A, mass_gradients, Regions);
  DENSESIAM_SHARED(unsigned, votes, kWarps);
  const Vote vote{votes};
  DENSESIAM_SHARED(A, dots, columns);          // sum_n m dm of each pixel
  A* const gradients = tiles;                  // [region][channel]
  A* const values = tiles + Regions * stride;  // [pixel][channel]
  A* const mask = tiles;                       // [region][pixel], when the product is done
  const unsigned pixel_tiles = (shape.pixels + columns - 1) / columns;
  const unsigned pixel0 = blockIdx.x % pixel_tiles * columns, b = blockIdx.x / pixel_tiles;
  Tiles product;

  // The product, then the masks, of a tile of regions.
  const auto take = [&](unsigned region0) {
    product.clear();
    const unsigned region = region0 + threadIdx.x;
    const bool has_mass = grad_mass != nullptr && region < shape.regions;
    if (threadIdx.x < Regions) {
      mass_gradients[threadIdx.x] =
          has_mass ? load(grad_mass + std::int64_t(b) * shape.regions + region) : A(0);
    }
    Part<Regions, depth, FeaturePacks, false, stride, false, A> grad_part{grad, {}};
    Part<depth, columns, FeaturePacks, true, stride, ChannelsLast, T> feature_part{features, {}};
    grad_part.fetch(b, region0, 0);
    feature_part.fetch(b, 0, pixel0);
    for (unsigned channel0 = 0; channel0 < shape.channels; channel0 += depth) {
      __syncthreads();  // the tiles and scratch are free again
      bool exceptional = false;
      grad_part.put(b, region0, channel0, gradients, [&](unsigned, unsigned, A value) {
        exceptional |= Tiles::is_exceptional(value);
        return Tiles::operand(value);
      });
      feature_part.put(b, channel0, pixel0, values, [&](unsigned, unsigned, A value) {
        exceptional |= Tiles::is_exceptional(value);
        return value;
      });
      if (Tiles::kSplit) vote.cast(exceptional);
      __syncthreads();
      if (channel0 + depth < shape.channels) {
        grad_part.fetch(b, here(region0), channel0 + depth);
        feature_part.fetch(b, channel0 + depth, here(pixel0));
      }
      multiply<stride, stride>(product, vote, gradients, values);
    }
    constexpr int most = LogitPacks ? 128 / int(sizeof(T)) : 16;  // as registers allow
    constexpr int rows = Regions < most ? Regions : most;
    const A* kept = log_sum + std::int64_t(b) * shape.pixels + here(pixel0);
    Part<rows, columns, LogitPacks, false, line, ChannelsLast, T> logit_part{logits, {}};
    logit_part.fetch(b, region0, pixel0);
    __syncthreads();
    for (int row = 0; row < Regions; row += rows) {
      if (row > 0) logit_part.fetch(b, region0 + row, pixel0);
      logit_part.put(b, region0 + row, pixel0, mask + row * line,
                     [&](unsigned region, unsigned pixel, A value) {
                       const bool counts =
                           region0 + row + region < shape.regions && pixel0 + pixel < shape.pixels;
                       return counts ? exponential(value - load(kept + pixel)) : A(0);
                     });
    }
    __syncthreads();
  };
  A dot = A(0);
  for (unsigned region0 = 0; region0 < shape.regions; region0 += Regions) {
    take(region0);
    product.template column_sums<line>(scratch, [&](unsigned row, unsigned column, A sum) {
      if (region0 + row >= shape.regions) return A(0);  // its sum may be no number
      return mask[row * line + column] * (sum + mass_gradients[row]);
    });
    __syncthreads();
    if (threadIdx.x < columns) {
      for (int part = 0; part < Tiles::kParts; ++part) {
        dot += scratch[part * line + threadIdx.x];
      }
    }
  }
  if (threadIdx.x < columns) dots[threadIdx.x] = dot;
  __syncthreads();
  for (unsigned region0 = 0; region0 < shape.regions; region0 += Regions) {
    if (shape.regions > Regions) take(region0);  // else both are still there
    product.visit([&](unsigned row, unsigned column, A sum) {
      A& m = mask[row * line + column];
      m *= sum + mass_gradients[row] - dots[column];
    });
    __syncthreads();
    Part<Regions, columns, LogitPacks, false, line, ChannelsLast, T>::write(out, b, region0, pixel0,
                                                                            mask);
  }
}

// Blocks of the forward: 128 or a little more for each that a multiprocessor holds, so that any GPU
// is full and the parts stay small.
template <int Regions, class T>
RegionSplit split_regions(const RegionShape& shape) {
  RegionSplit split;
  split.region_tiles = unsigned(divide_up(shape.regions, Regions));
  // Without channels there is still the mass.
  split.channel_tiles =
      unsigned(divide_up(shape.channels ? shape.channels : 1, kColumns<Regions, T>));
  const std::uint64_t tiles = std::uint64_t(split.region_tiles) * split.channel_tiles * shape.batch;
  const std::uint64_t steps = divide_up(shape.pixels, kDepth<Accumulate<T>>);
  const std::uint64_t wanted = divide_up(128 * kTogether<Regions, T>, tiles);
  split.steps = unsigned(divide_up(steps, wanted < steps ? wanted : steps));
  split.splits = unsigned(divide_up(steps, split.steps));
  return split;
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
