// region_pool: features summed over soft regions, the softmax fused into the matrix product.
//
//   m = softmax over n of logits                      (never in global memory)
//   r[b, n, c] = sum_p m[b, n, p] f[b, c, p],  mass[b, n] = sum_p m[b, n, p]
//   df[b, c, p] = sum_n m[b, n, p] g[b, n, c]
//   dm[b, n, p] = sum_c g[b, n, c] f[b, c, p] + g_mass[b, n]
//   dlogits = m (dm - sum_n m dm)
//
// Tiled products on tensor cores (products.cuh): half types as they are, in tiles of 16 bits, their
// masks and gradients rounded to them; float32, and half types' backward of more than 128 regions,
// in tf32, which holds features of half types exactly and of which float32 is the sum of two
// numbers; float64 on CUDA cores. What a tile is made of next is under way while it is multiplied.
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

// Numbers as they lie in memory: 16 bytes of them, or one; of a half type it has a register of its
// own, since a compiler that puts two into one waits for both.
template <bool Packs, class T>
using Raw =
    std::conditional_t<Packs, Words, std::conditional_t<sizeof(T) == 2, std::uint32_t, Pack<T, 1>>>;

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
template <class T>
__device__ __forceinline__ Pack<T, 1> unpacked(std::uint32_t half_) {
  const auto bits = std::uint16_t(half_);
  Pack<T, 1> pack;
  std::memcpy(&pack, &bits, sizeof(bits));
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
  std::uint32_t outside = 0;  // what two numbers beyond the map are, or one

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

  __device__ __forceinline__ Raw<Packs, T> beyond() const {
    const Words words{{outside, outside, outside, outside}};
    Raw<Packs, T> raw;
    std::memcpy(&raw, &words, sizeof(raw));
    return raw;
  }
  __device__ __forceinline__ Raw<Packs, T> read(unsigned b, unsigned row, unsigned pixel) const {
    if (!map.has(row, pixel)) return beyond();
    const T* at = map.at(b, row, pixel);
    if constexpr (Packs) {
      return load_words(reinterpret_cast<const Words*>(at));
    } else {
      const Pack<T, 1> one = load<1>(at);
      std::conditional_t<sizeof(T) == 2, std::uint16_t, Pack<T, 1>> bits;
      std::memcpy(&bits, &one, sizeof(bits));
      return bits;
    }
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

  // Calls write(place, raw) for each item, of the part that was fetched; of one that is not held,
  // which is read so many items at a time.
  template <unsigned kBatch, class Write>
  __device__ __forceinline__ void each(unsigned b, unsigned row0, unsigned pixel0,
                                       const Write& write) const {
    static_assert(kHeld || kItems % (kBatch * kThreads) == 0);
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const unsigned item = threadIdx.x + i * kThreads;
        if (kItems % kThreads != 0 && item >= kItems) break;
        write(place(item), held[i]);
      }
    } else {
#pragma unroll 1
      for (unsigned first = threadIdx.x; first < kItems; first += kBatch * kThreads) {
        Raw<Packs, T> some[kBatch];
#pragma unroll
        for (unsigned i = 0; i < kBatch; ++i) {
          const Place at = place(first + i * kThreads);
          some[i] = read(b, row0 + at.row, pixel0 + at.pixel);
        }
#pragma unroll
        for (unsigned i = 0; i < kBatch; ++i) write(place(first + i * kThreads), some[i]);
      }
    }
  }

  // The tile holds what is in memory.
  __device__ __forceinline__ void copy(unsigned b, unsigned row0, unsigned pixel0, T* tile) const {
    static_assert(kStraight);
    each<kItems % (8 * kThreads) == 0 ? 8 : 1>(
        b, row0, pixel0, [&](const Place& at, const Raw<Packs, T>& raw) {
          if constexpr (Packs) *reinterpret_cast<Words*>(tile + in_tile(at)) = raw;
          if constexpr (!Packs) tile[in_tile(at)] = unpacked<T>(raw).values[0];
        });
  }

  // tile = change(row, pixel, value) of each; rows and pixels count from the part's first.
  template <class Change>
  __device__ __forceinline__ void put(unsigned b, unsigned row0, unsigned pixel0, A* tile,
                                      const Change& change) const {
    each<1>(b, row0, pixel0, [&](const Place& at, const Raw<Packs, T>& raw) {
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
    });
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

// A part of a map of a half type on its way to a tile that holds a copy of it, in the map's own
// lines: asynchronously in 16-byte packs, else as a Part. start() and, behind what is done
// meanwhile, finish(); then wait_for_copies().
template <int Rows, int Pixels, bool Packs, bool ChannelsLast, class T>
struct HalfPart {
  // Neighbouring lines start 4 banks apart, modulo 8: eight of them are in all banks.
  static constexpr int kLine = (ChannelsLast ? Rows : Pixels) + kPack<T>;
  static constexpr int kSize = kLine * (ChannelsLast ? Pixels : Rows);
  using Loaded = Part<Rows, Pixels, Packs, ChannelsLast, kLine, ChannelsLast, T>;
  static_assert(Loaded::kItems % kThreads == 0);
  Loaded part;

  __device__ __forceinline__ void start(unsigned b, unsigned row0, unsigned pixel0, T* tile) {
    if constexpr (Packs) {
#pragma unroll
      for (int i = 0; i < Loaded::kEach; ++i) {
        const auto at = Loaded::place(threadIdx.x + i * kThreads);
        auto* to = reinterpret_cast<Words*>(tile + Loaded::in_tile(at));
        const unsigned row = row0 + at.row, pixel = pixel0 + at.pixel;
        if (part.map.has(row, pixel)) {
          start_copy(to, reinterpret_cast<const Words*>(part.map.at(b, row, pixel)));
        } else {
          *to = part.beyond();
        }
      }
    } else {
      part.fetch(b, row0, pixel0);
    }
  }
  __device__ __forceinline__ void finish(unsigned b, unsigned row0, unsigned pixel0, T* tile) {
    if constexpr (!Packs) part.copy(b, row0, pixel0, tile);
  }
};

// Columns of the products whose rows are regions: 32 to 64 sums a thread, as registers allow.
template <int Regions, class T>
constexpr int kColumns = Regions == 32 || sizeof(T) == 2 ? 128 : 64;

// Pixels of a step of the forward: as two tiles of each map fit into a block's shared memory.
template <int Regions, class T>
constexpr int kForwardDepth = sizeof(T) == 2 ? (Regions == 32 ? 64 : 32) : kDepth<Accumulate<T>>;

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

// log a, within 2^-22 and a unit of the last place, of normal numbers.
__device__ __forceinline__ float logarithm(float a) {
#ifdef __CUDA_ARCH__
  float power;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a));
  return power * 0.693147181f;  // log 2
#else
  return std::log(a);
#endif
}

// How the forward is cut: pixels into splits of so many steps, regions and channels into tiles.
struct RegionSplit {
  unsigned splits, steps, region_tiles, channel_tiles;
};

// What a block of the forward takes: pixels begin to end of an image, a tile of regions and one of
// channels.
struct ForwardPlace {
  unsigned b, region0, channel0, begin, end, part;  // of [splits, B]

  static __device__ __forceinline__ ForwardPlace of(const RegionShape& shape,
                                                    const RegionSplit& split, int regions,
                                                    int channels, int depth) {
    unsigned block = blockIdx.x;
    ForwardPlace at;
    at.channel0 = block % split.channel_tiles * channels;
    block /= split.channel_tiles;
    at.region0 = block % split.region_tiles * regions;
    block /= split.region_tiles;
    const unsigned s = block % split.splits;
    at.b = block / split.splits;
    at.begin = s * split.steps * depth;
    const unsigned limit = at.begin + split.steps * depth;
    at.end = limit < shape.pixels ? limit : shape.pixels;
    at.part = s * shape.batch + at.b;
    return at;
  }
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
  const auto [b, region0, channel0, begin, end, part] =
      ForwardPlace::of(shape, split, Regions, columns, depth);

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

  const std::int64_t image = part;
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

// The same of half types, whose tiles stay as they are in memory: 16-bit numbers, in lines of what
// is contiguous there. Masks are rounded to T in place of the logits.
//
// float16 holds them times 2^15, which keeps 11 bits of a mask from 2^-29 on and some down to
// 2^-39; bfloat16 holds 8 bits of any. Both are what is summed, as a product with ones, for the
// mass, so that regions that are normalized are means with the weights that were used.
template <int Regions, bool ChannelsLast, bool FeaturePacks, bool LogitPacks, class T>
__global__ void __launch_bounds__(kThreads, kTogether<Regions, T>)
    region_pool_forward_half(Map<ChannelsLast, const T> features,  // [B, C, P]
                             Map<ChannelsLast, const T> logits,    // [B, N, P]
                             RegionShape shape, RegionSplit split, bool fused,
                             float* __restrict__ log_sum,    // [B, P]
                             float* __restrict__ parts,      // [splits, B, N, C]
                             float* __restrict__ mass_parts  // [splits, B, N]
    ) {
  constexpr int depth = kForwardDepth<Regions, T>, columns = kColumns<Regions, T>;
  using Tiles = Product<T, Regions, columns>;
  using Logits = HalfPart<Regions, depth, LogitPacks, ChannelsLast, T>;
  using Features = HalfPart<columns, depth, FeaturePacks, ChannelsLast, T>;
  DENSESIAM_SHARED(T, masks, 2 * Logits::kSize);  // this step's, and the next one's logits
  DENSESIAM_SHARED(T, values, 2 * Features::kSize);
  const auto at = ForwardPlace::of(shape, split, Regions, columns, depth);

  // A thread has so many words: of two pixels, a region each; or of pairs of one pixel's regions,
  // four at a time.
  constexpr int own = ChannelsLast ? 1 : 2, wide = ChannelsLast ? 4 : 1;
  constexpr int members = kThreads / depth * own, each = Regions * depth / 2 / kThreads;
  constexpr int next = members * (ChannelsLast ? 2 * wide : Logits::kLine);
  const unsigned k = threadIdx.x / members * own, member = threadIdx.x % members;
  const unsigned mine =
      ChannelsLast ? k * Logits::kLine + 2 * wide * member : member * Logits::kLine + k;
  constexpr float unit = std::is_same_v<T, half> ? 0x1p15f : 1.0f;
  const HalfWord one = packed<T>(1.0f, 1.0f);
  const unsigned column_warp = threadIdx.x / kLanes / Tiles::kRowWarps;
  float mass[4] = {};
  Tiles product;
  product.clear();
  Logits logit_part{{logits, {}, packed<T>(-INFINITY, -INFINITY)}};
  Features feature_part{{features, {}}};
  logit_part.start(at.b, at.region0, at.begin, masks);
  feature_part.start(at.b, at.channel0, at.begin, values);
  logit_part.finish(at.b, at.region0, at.begin, masks);
  feature_part.finish(at.b, at.channel0, at.begin, values);
  unsigned now = 0;  // which of the two tiles
  for (unsigned pixel0 = at.begin; pixel0 < at.end; pixel0 += depth, now ^= 1) {
    wait_for_copies();
    __syncthreads();
    const unsigned following = pixel0 + depth;
    T* const next_masks = masks + (now ^ 1) * Logits::kSize;
    T* const next_values = values + (now ^ 1) * Features::kSize;
    if (following < at.end) {
      logit_part.start(at.b, here(at.region0), following, next_masks);
      feature_part.start(at.b, here(at.channel0), following, next_values);
    }

    T* const mask = masks + now * Logits::kSize;
    float x[each][2];
#pragma unroll
    for (int i = 0; i < each; i += wide) {
      const auto words =
          *reinterpret_cast<const Pack<HalfWord, wide>*>(mask + mine + i / wide * next);
#pragma unroll
      for (int w = 0; w < wide; ++w) unpack<T>(words.values[w], x[i + w]);
    }
    const std::int64_t pixel = std::int64_t(at.b) * shape.pixels + pixel0 + k;
    float scale[2];
    if (fused) {
      LogSumExp<float> sums[own];
#pragma unroll
      for (int o = 0; o < own; ++o) sums[o] = LogSumExp<float>::identity();
#pragma unroll
      for (int i = 0; i < each; ++i) {
#pragma unroll
        for (int w = 0; w < 2; ++w) sums[w % own].max = larger(sums[w % own].max, x[i][w]);
      }
#pragma unroll
      for (int bits = members / 2; bits > 0; bits /= 2) {
#pragma unroll
        for (int o = 0; o < own; ++o) {
          sums[o].max = larger(sums[o].max, __shfl_xor_sync(kAllLanes, sums[o].max, bits));
        }
      }
#pragma unroll
      for (int i = 0; i < each; ++i) {
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          x[i][w] = exponential(x[i][w] - sums[w % own].max);
          sums[w % own].sum += x[i][w];
        }
      }
#pragma unroll
      for (int bits = members / 2; bits > 0; bits /= 2) {
#pragma unroll
        for (int o = 0; o < own; ++o) {
          sums[o].sum += __shfl_xor_sync(kAllLanes, sums[o].sum, bits);
        }
      }
#pragma unroll
      for (int o = 0; o < own; ++o) {
        const bool inside = pixel0 + k + o < at.end;
        scale[o] = inside ? quotient(unit, sums[o].sum) : 0.0f;
        if (inside && member == 0 && at.channel0 == 0) {
          store(log_sum + pixel + o, sums[o].max + logarithm(sums[o].sum));
        }
      }
    } else {
#pragma unroll
      for (int o = 0; o < own; ++o) {
        const bool inside = pixel0 + k + o < at.end;
        const float kept = inside ? load(log_sum + pixel + o) : 0.0f;
#pragma unroll
        for (int i = 0; i < each; ++i) {
#pragma unroll
          for (int w = o; w < 2; w += own) x[i][w] = exponential(x[i][w] - kept);
        }
        scale[o] = inside ? unit : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < each; i += wide) {
      Pack<HalfWord, wide> words;
#pragma unroll
      for (int w = 0; w < wide; ++w) {
        words.values[w] = packed<T>(x[i + w][0] * scale[0], x[i + w][1] * scale[own - 1]);
      }
      *reinterpret_cast<Pack<HalfWord, wide>*>(mask + mine + i / wide * next) = words;
    }
    __syncthreads();
    product.template add_halves<depth, ChannelsLast, Logits::kLine, ChannelsLast, Features::kLine>(
        mask, values + now * Features::kSize, [&](unsigned i, const HalfWord(&rows)[4]) {
          const HalfWord ones[2] = {one, one};
          if (i == column_warp) multiply_halves<T>(mass, rows, ones);
        });
    if (following < at.end) {
      logit_part.finish(at.b, at.region0, following, next_masks);
      feature_part.finish(at.b, at.channel0, following, next_values);
    }
  }

  product.visit([&](unsigned row, unsigned column, float sum) {
    if (at.region0 + row >= shape.regions || at.channel0 + column >= shape.channels) return;
    const std::int64_t line = std::int64_t(at.part) * shape.regions + at.region0 + row;
    store(parts + line * shape.channels + at.channel0 + column, sum * (1 / unit));
  });
  if (at.channel0 != 0 || column_warp >= Tiles::kM || threadIdx.x % 4 != 0) return;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const unsigned row = at.region0 + Tiles::first_row(column_warp) + 8 * n;
    if (row < shape.regions) {
      store(mass_parts + std::int64_t(at.part) * shape.regions + row, mass[2 * n] * (1 / unit));
    }
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

// -- Backward of half types with at most kMostRegions regions: both gradients at once.

constexpr int kSlice = 32;  // channels of a step

// Pixels of a block, all of whose masks are there.
template <int Regions>
constexpr int kBlockPixels = Regions == 32 ? 128 : 64;

// Blocks of region_pool_operands that share an image.
DENSESIAM_HD unsigned operand_blocks(unsigned regions, unsigned channels) {
  const unsigned blocks = regions * channels / 2048;
  return blocks < 1 ? 1 : blocks < 8 ? blocks : 8;
}

// The upstream gradient as 16-bit numbers, zeros beyond it. float16 holds an image's times a power
// of two that makes the largest finite one 2^14 to 2^15: it keeps 11 bits of what is 2^-29 of that,
// and some of what is 2^-39. bfloat16 holds 8 bits of any. A few blocks share an image, each of
// which finds the largest.
template <bool Packs, class T>
__global__ void __launch_bounds__(kThreads)
    region_pool_operands(const float* __restrict__ grad,  // [B, N, C]
                         RegionShape shape, unsigned regions, unsigned channels,
                         T* __restrict__ operands,   // [B, regions, channels]
                         float* __restrict__ scales  // [B]: what they are to be multiplied by
    ) {
  constexpr int N = Packs ? 4 : 1;
  DENSESIAM_SHARED(float, largest, kWarps);
  const unsigned blocks = operand_blocks(regions, channels), b = blockIdx.x / blocks;
  const unsigned count = shape.regions * shape.channels;
  const float* const image = grad + std::int64_t(b) * count;
  float scale = 1.0f;
  if constexpr (std::is_same_v<T, half>) {
    float most = 0.0f;
#pragma unroll 8
    for (unsigned i = threadIdx.x * N; i < count; i += kThreads * N) {
      const auto pack = load<N>(image + i);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float size = std::fabs(pack.values[n]);
        most = larger(most, size < INFINITY ? size : 0.0f);
      }
    }
#pragma unroll
    for (int bits = kLanes / 2; bits > 0; bits /= 2) {
      most = larger(most, __shfl_xor_sync(kAllLanes, most, bits));
    }
    if (threadIdx.x % kLanes == 0) largest[threadIdx.x / kLanes] = most;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) most = larger(most, largest[warp]);
    // 2^14 over the power of two at or below it; as far as both factors are normal numbers.
    unsigned bits;
    std::memcpy(&bits, &most, sizeof(bits));
    const unsigned exponent = bits >> 23, factor = exponent < 15 ? 253 : 268 - exponent;
    const unsigned chosen = (most > 0.0f ? factor : 127) << 23;
    std::memcpy(&scale, &chosen, sizeof(scale));
  }
  const unsigned block = blockIdx.x % blocks, size = regions * channels;
  if (block == 0 && threadIdx.x == 0) store(scales + b, 1.0f / scale);
#pragma unroll 4
  for (unsigned i = (block * kThreads + threadIdx.x) * N; i < size; i += blocks * kThreads * N) {
    const unsigned row = i / channels, column = i % channels;
    Pack<float, N> pack = {};
    if (row < shape.regions && column < shape.channels) {
      pack = load<N>(image + row * shape.channels + column);
    }
    Pack<T, N> rounded;
#pragma unroll
    for (int n = 0; n < N; ++n) rounded.values[n] = from_float<T>(pack.values[n] * scale);
    store<N>(operands + std::int64_t(b) * size + i, rounded);
  }
}

// Lane t of four neighbours gets the t-th word of each of them.
__device__ __forceinline__ void turn_words(HalfWord (&words)[4]) {
#pragma unroll
  for (unsigned bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (unsigned n = 0; n < 4; ++n) {
      if (n & bit) continue;
      const HalfWord sent = upper ? words[n] : words[n | bit];
      const HalfWord found = __shfl_xor_sync(kAllLanes, sent, bit);
      (upper ? words[n] : words[n | bit]) = found;
    }
  }
}

// Writes 16 x 16 numbers of a warp, two products side by side whose rows are lines of the map:
// wide, 16 bytes a lane.
template <bool ChannelsLast, class T>
__device__ __forceinline__ void store_square(const Map<ChannelsLast, T>& out, bool wide, unsigned b,
                                             unsigned row0, unsigned pixel0, const float (&left)[4],
                                             const float (&right)[4]) {
  HalfWord words[4] = {packed<T>(left[0], left[1]), packed<T>(right[0], right[1]),
                       packed<T>(left[2], left[3]), packed<T>(right[2], right[3])};
  turn_words(words);
  const unsigned t = threadIdx.x % 4;
  const unsigned line = threadIdx.x % kLanes / 4 + t / 2 * 8, first = t % 2 * 8;
  const unsigned row = row0 + (ChannelsLast ? first : line);
  const unsigned pixel = pixel0 + (ChannelsLast ? line : first);
  if (!out.has(row, pixel)) return;
  Pack<T, 8> pack;
  std::memcpy(&pack, words, sizeof(pack));
  if (wide) return store<8>(out.at(b, row, pixel), pack);
#pragma unroll
  for (unsigned n = 0; n < 8; ++n) {
    const unsigned r = row + (ChannelsLast ? n : 0), p = pixel + (ChannelsLast ? 0 : n);
    if (out.has(r, p)) store(out.at(b, r, p), pack.values[n]);
  }
}

// Writes the first `width` numbers of so many lines of a tile, one after the other; neighbouring
// lanes write neighbouring words.
template <int Line, class T>
__device__ __forceinline__ void store_run(const T* tile, unsigned lines, unsigned width, T* out) {
  const unsigned size = lines * width;
  const bool aligned = reinterpret_cast<std::uintptr_t>(out) % sizeof(HalfWord) == 0;
  for (unsigned first = 2 * threadIdx.x; first < size; first += 2 * kThreads) {
    const unsigned line = first / width, column = first % width;
    const T* const from = tile + line * Line + column;
    const T* const next = column + 1 < width ? from + 1 : tile + (line + 1) * Line;
    const bool both = first + 1 < size;
    const Pack<T, 2> pack = {{*from, both ? *next : *from}};
    if (aligned && both) {
      store<2>(out + first, pack);
    } else {
      store(out + first, pack.values[0]);
      if (both) store(out + first + 1, pack.values[1]);
    }
  }
}

// A slice of channels after the other, each is multiplied by the features' for dm, and by the
// masks, which a warp has in registers, for the features' gradient. An `out` without a base is not
// wanted; wide: whether it can be written in 16-byte packs.
template <int Regions, bool ChannelsLast, bool FeaturePacks, bool LogitPacks, class T>
__global__ void __launch_bounds__(kThreads, kTogether<Regions, T>)
    region_pool_backward_half(const T* __restrict__ operands,       // [B, Regions, channels]
                              const float* __restrict__ scales,     // [B]
                              const float* __restrict__ grad_mass,  // [B, N] or null
                              Map<ChannelsLast, const T> features,  // [B, C, P]
                              Map<ChannelsLast, const T> logits,    // [B, N, P]
                              const float* __restrict__ log_sum,    // [B, P]
                              RegionShape shape, unsigned channels, bool wide_features,
                              Map<ChannelsLast, T> out_features,                 // [B, C, P]
                              bool wide_logits, Map<ChannelsLast, T> out_logits  // [B, N, P]
    ) {
  constexpr int pixels = kBlockPixels<Regions>;
  using Logits = HalfPart<Regions, pixels, LogitPacks, ChannelsLast, T>;
  using Features = HalfPart<kSlice, pixels, FeaturePacks, ChannelsLast, T>;
  using Tiles = Product<T, ChannelsLast ? pixels : Regions, ChannelsLast ? Regions : pixels>;
  constexpr int grad_line = kSlice + kPack<T>, grad_size = Regions * grad_line;
  DENSESIAM_SHARED(T, mask, Logits::kSize);
  DENSESIAM_SHARED(T, gradients, 2 * grad_size);  // [region][channel], this slice and the next
  DENSESIAM_SHARED(T, values, 2 * Features::kSize);
  const unsigned pixel_tiles = (shape.pixels + pixels - 1) / pixels;
  const unsigned pixel0 = blockIdx.x % pixel_tiles * pixels, b = blockIdx.x / pixel_tiles;
  const unsigned warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;

  Features feature_part{{features, {}}};
  const auto start = [&](unsigned channel0, unsigned which) {
    const T* const source = operands + std::int64_t(b) * Regions * channels + channel0;
    constexpr unsigned packs = kSlice / kPack<T>;
#pragma unroll
    for (unsigned item = threadIdx.x; item < Regions * packs; item += kThreads) {
      const unsigned region = item / packs, first = item % packs * kPack<T>;
      start_copy(
          reinterpret_cast<Words*>(gradients + which * grad_size + region * grad_line + first),
          reinterpret_cast<const Words*>(source + region * channels + first));
    }
    feature_part.start(b, channel0, pixel0, values + which * Features::kSize);
  };
  const auto finish = [&](unsigned channel0, unsigned which) {
    feature_part.finish(b, channel0, pixel0, values + which * Features::kSize);
  };

  // The masks, in place of the logits: a thread has words of the same pixels.
  constexpr float unit = std::is_same_v<T, half> ? 0x1p15f : 1.0f;
  {
    constexpr int own = ChannelsLast ? 1 : 2, members = kThreads / (pixels / own);
    constexpr int each = Regions * pixels / 2 / kThreads;
    const unsigned member = ChannelsLast ? threadIdx.x % members : threadIdx.x / (pixels / own);
    const unsigned k = ChannelsLast ? threadIdx.x / members : threadIdx.x % (pixels / own) * own;
    T* const mine =
        mask + (ChannelsLast ? k * Logits::kLine + 2 * member : member * Logits::kLine + k);
    constexpr int next = members * (ChannelsLast ? 2 : Logits::kLine);
    Logits logit_part{{logits, {}, packed<T>(-INFINITY, -INFINITY)}};
    logit_part.start(b, 0, pixel0, mask);
    start(0, 0);
    float kept[own];
#pragma unroll
    for (int o = 0; o < own; ++o) {
      const bool inside = pixel0 + k + o < shape.pixels;
      kept[o] = inside ? load(log_sum + std::int64_t(b) * shape.pixels + pixel0 + k + o) : 0.0f;
    }
    logit_part.finish(b, 0, pixel0, mask);
    finish(0, 0);
    wait_for_copies();
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < each; ++i) {
      auto* const word = reinterpret_cast<HalfWord*>(mine + i * next);
      float x[2];
      unpack<T>(*word, x);
      *word =
          packed<T>(unit * exponential(x[0] - kept[0]), unit * exponential(x[1] - kept[own - 1]));
    }
    __syncthreads();
  }

  // A warp's 16 pixels and its part of a slice, in squares of 16 channels.
  constexpr int pixel_warps = pixels / 16, squares = pixels == 64 ? 1 : 2, deep = Regions / 16;
  const unsigned own_pixel = warp % pixel_warps * 16, own_channel = warp / pixel_warps * 16;
  // Four matrices are the quarters of 16 x 16 numbers: of left factors the second is below, of
  // right ones beside.
  const unsigned r = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
  HalfWord masks[deep][4];
#pragma unroll
  for (int k = 0; k < deep; ++k) {
    load_matrices<!ChannelsLast>(
        masks[k],
        mask + (ChannelsLast ? (own_pixel + second + r) * Logits::kLine + k * 16 + third
                             : (k * 16 + second + r) * Logits::kLine + own_pixel + third));
  }
  const float scale = load(scales + b);
  Tiles product;
  product.clear();
  unsigned now = 0;
  for (unsigned channel0 = 0; channel0 < channels; channel0 += kSlice, now ^= 1) {
    if (channel0 > 0) {
      wait_for_copies();
      __syncthreads();
    }
    const bool more = channel0 + kSlice < channels;
    if (more) start(channel0 + kSlice, now ^ 1);
    const T* const grads = gradients + now * grad_size;
    const auto nothing = [](int, const HalfWord(&)[4]) {};
    if (out_logits.base != nullptr) {
      if constexpr (ChannelsLast) {
        product.template add_halves<kSlice, false, Features::kLine, false, grad_line>(
            values + now * Features::kSize, grads, nothing);
      } else {
        product.template add_halves<kSlice, false, grad_line, true, Features::kLine>(
            grads, values + now * Features::kSize, nothing);
      }
    }
    if (out_features.base != nullptr) {
#pragma unroll
      for (int square = 0; square < squares; ++square) {
        float sums[2][4] = {};
        const unsigned channel = own_channel + square * 16;
#pragma unroll
        for (int k = 0; k < deep; ++k) {
          HalfWord words[4];
          load_matrices<true>(
              words, grads + (k * 16 + (ChannelsLast ? second : third) + r) * grad_line + channel +
                         (ChannelsLast ? third : second));
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            if constexpr (ChannelsLast) {
              const HalfWord right[2] = {words[2 * side], words[2 * side + 1]};
              multiply_halves<T>(sums[side], masks[k], right);
            } else {
              const HalfWord right[2] = {masks[k][2 * side], masks[k][2 * side + 1]};
              multiply_halves<T>(sums[side], words, right);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          sums[0][n] *= scale / unit;
          sums[1][n] *= scale / unit;
        }
        store_square(out_features, wide_features, b, channel0 + channel, pixel0 + own_pixel,
                     sums[0], sums[1]);
      }
    }
    if (more) finish(channel0 + kSlice, now ^ 1);
  }
  if (out_logits.base == nullptr) return;

  // dm, and its mean under the mask, of each pixel.
  constexpr int parts = ChannelsLast ? Tiles::kColumnWarps : Tiles::kRowWarps;
  static_assert(2 * parts * pixels <= 2 * grad_size);
  float* const dots = reinterpret_cast<float*>(gradients);  // [parts][pixels]
  __syncthreads();
  const unsigned g = lane / 4, t = lane % 4;
  const unsigned row0 = warp % Tiles::kRowWarps * 32 + g;
  const unsigned column0 = warp / Tiles::kRowWarps * Tiles::kN * 8 + 2 * t;
  // Of a thread's two neighbouring sums.
  const auto place_of = [&](int i, int j, int half_) {
    return mask + (row0 + i * 16 + half_ * 8) * Logits::kLine + column0 + j * 8;
  };
  const auto weights = [&](int i, int j, int half_, float (&two)[2]) {
    HalfWord word;
    std::memcpy(&word, place_of(i, j, half_), sizeof(word));
    unpack<T>(word, two);
  };
  // Where a pixel's regions are no packs, those of all pixels are: each thread leaves its gradients
  // in place of its masks.
  const bool in_a_run = ChannelsLast && !wide_logits;
  constexpr int places = ChannelsLast ? 2 * Tiles::kM : 2 * Tiles::kN;  // pixels of a lane
  const auto pixel_of = [&](int n) {
    return ChannelsLast ? row0 + n / 2 * 16 + n % 2 * 8 : column0 + n / 2 * 8 + n % 2;
  };
  float totals[places] = {};
#pragma unroll
  for (int i = 0; i < Tiles::kM; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles::kN; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float m[2];
        weights(i, j, h, m);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          const unsigned region = ChannelsLast ? column0 + j * 8 + w : row0 + i * 16 + h * 8;
          float& sum = product.sums[i][j][2 * h + w];
          const bool counts = region < shape.regions;  // its sum may be no number
          const float more = grad_mass != nullptr && counts
                                 ? load(grad_mass + std::int64_t(b) * shape.regions + region)
                                 : 0.0f;
          sum = sum * scale + more;
          totals[ChannelsLast ? 2 * i + h : 2 * j + w] += counts ? m[w] / unit * sum : 0.0f;
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < places; ++n) {
#pragma unroll
    for (int bits = ChannelsLast ? 1 : 4; bits <= (ChannelsLast ? 2 : 16); bits *= 2) {
      totals[n] += __shfl_xor_sync(kAllLanes, totals[n], bits);
    }
    const unsigned part = ChannelsLast ? warp / Tiles::kRowWarps : warp % Tiles::kRowWarps;
    if ((ChannelsLast ? t : g) == 0) dots[part * pixels + pixel_of(n)] = totals[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < places; ++n) {
    totals[n] = 0.0f;
#pragma unroll
    for (int part = 0; part < parts; ++part) totals[n] += dots[part * pixels + pixel_of(n)];
  }
#pragma unroll
  for (int i = 0; i < Tiles::kM; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles::kN; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float m[2];
        weights(i, j, h, m);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          float& sum = product.sums[i][j][2 * h + w];
          sum = m[w] / unit * (sum - totals[ChannelsLast ? 2 * i + h : 2 * j + w]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < Tiles::kN; j += 2) {
      if (in_a_run) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const auto& sums = product.sums[i][j + side];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const HalfWord word = packed<T>(sums[2 * h], sums[2 * h + 1]);
            std::memcpy(place_of(i, j + side, h), &word, sizeof(word));
          }
        }
        continue;
      }
      const unsigned line = row0 - g + i * 16, first = column0 - 2 * t + j * 8;
      store_square(out_logits, wide_logits, b, ChannelsLast ? first : line,
                   pixel0 + (ChannelsLast ? line : first), product.sums[i][j],
                   product.sums[i][j + 1]);
    }
  }
  if (!in_a_run) return;
  __syncthreads();
  const unsigned left = shape.pixels - pixel0;
  store_run<Logits::kLine>(mask, left < pixels ? left : pixels, shape.regions,
                           out_logits.at(b, 0, pixel0));
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
  const std::uint64_t steps = divide_up(shape.pixels, kForwardDepth<Regions, T>);
  const std::uint64_t wanted = divide_up(128 * kTogether<Regions, T>, tiles);
  split.steps = unsigned(divide_up(steps, wanted < steps ? wanted : steps));
  split.splits = unsigned(divide_up(steps, split.steps));
  return split;
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
