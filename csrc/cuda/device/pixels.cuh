// How kernels that work pixel by pixel read (B, C, P) maps and share the channels of a pixel.
//
// Planar maps: a thread has N neighbouring pixels and walks along channels; where there are many
// channels, `slices` warps of the block take every slices-th chunk each and merge what they
// found. Pixels-layout (channels_last) maps: `lanes` neighbouring lanes have one pixel, and take
// its packs of N channels in turn. Where a pixel is no whole number of packs, the block copies its
// pixels, one contiguous run, into shared memory first. Every sum is merged in an order that shape
// alone decides.
#pragma once

#include "run.cuh"
#include "weights.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

struct PixelShape {
  unsigned batch, channels, pixels;
};

// N neighbouring pixels of a planar map.
template <class T_, int N_>
struct PlanarSource {
  using T = T_;
  using A = Accumulate<T>;
  static constexpr int N = N_;
  static constexpr bool kPixelsLayout = false, kStaged = false;
  const T* base;

  struct Reader {
    const T* first;
    unsigned pixels;
    __device__ __forceinline__ void read(unsigned c, A (&values)[N]) const {
      const auto pack = load<N>(first + c * pixels);
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = to_float(pack.values[n]);
    }
  };
  __device__ __forceinline__ Reader at(const PixelShape& shape, unsigned b, unsigned pixel) const {
    return {base + std::int64_t(b) * shape.channels * shape.pixels + pixel, shape.pixels};
  }
};

constexpr unsigned kMostBits = 5;  // 2^5 lanes are a warp

// This thread's part of a pixels-layout map: one of the 2^bits neighbouring lanes that share a
// pixel, of which the block has several.
struct PixelsPart {
  unsigned b, first, pixel, lane, lanes, bits;
  bool inside;

  __device__ __forceinline__ PixelsPart(const PixelShape& shape, unsigned bits_) : bits(bits_) {
    const unsigned tile = kThreads >> bits, tiles = (shape.pixels + tile - 1) >> (8 - bits);
    b = blockIdx.x / tiles;
    first = (blockIdx.x - b * tiles) * tile;
    pixel = first + (threadIdx.x >> bits);
    lanes = 1u << bits;
    lane = threadIdx.x & (lanes - 1);
    inside = pixel < shape.pixels;
  }
  static unsigned blocks(const PixelShape& shape, unsigned bits) {
    return unsigned(divide_up(shape.pixels, kThreads >> bits) * shape.batch);
  }
};

// N neighbouring channels of a pixel of a pixels-layout map.
template <class T_, int N_>
struct PixelsSource {
  using T = T_;
  using A = Accumulate<T>;
  static constexpr int N = N_;
  static constexpr int kAtOnce = sizeof(A) == 8 ? 1 : N == 1 ? 4 : 16 / N;  // packs of a lane
  static constexpr bool kPixelsLayout = true, kStaged = false;
  const T* base;

  struct Reader {
    const T* first;
    __device__ __forceinline__ void read(unsigned c, A* values) const {
      const auto pack = load<N>(first + c);
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = to_float(pack.values[n]);
    }
  };
  __device__ __forceinline__ Reader at(const PixelShape& shape, unsigned b, unsigned pixel) const {
    return {base + (std::int64_t(b) * shape.pixels + pixel) * shape.channels};
  }
};

// Channels of a pixel of a pixels-layout map that starts at a 16-byte boundary and whose pixels are
// no whole packs, read in shared memory: the block's pixels lie there as they lie in the map, from
// the same place in a pack on. An odd number of 4-byte channels has no bank conflicts; of 2-byte
// ones two pixels may share a bank.
template <class T_>
struct StagedSource {
  using T = T_;
  using A = Accumulate<T>;
  static constexpr int N = 1;
  static constexpr int kAtOnce = sizeof(A) == 8 ? 1 : 8;
  static constexpr bool kPixelsLayout = true, kStaged = true;
  const T* base;
  unsigned slot;  // 0, or 1 for the second map of a kernel

  // Halvings of a block's pixels (lanes that share a pixel are so many doublings) until those of
  // all maps take 32 KB: six blocks and more have room at once. More than kMostBits: they never do.
  static unsigned bits(unsigned channels, unsigned maps) {
    unsigned bits = 0;
    while (bits <= kMostBits && maps * room(channels, bits) * sizeof(T) > 32 << 10) ++bits;
    return bits;
  }
  // Elements of a map's pixels in a block, whole packs.
  static DENSESIAM_HD std::size_t room(unsigned channels, unsigned bits) {
    return Run<T>::room(std::size_t(kThreads >> bits) * channels);
  }

  __device__ __forceinline__ Run<T> run(const PixelShape& shape, const PixelsPart& part) const {
    DENSESIAM_DYNAMIC_SHARED(T, memory);
    const unsigned left = shape.pixels - part.first, tile = kThreads >> part.bits;
    const std::int64_t first = (std::int64_t(part.b) * shape.pixels + part.first) * shape.channels;
    return {first, (left < tile ? left : tile) * shape.channels,
            memory + slot * unsigned(room(shape.channels, part.bits))};
  }
  __device__ __forceinline__ void stage(const PixelShape& shape, const PixelsPart& part) const {
    run(shape, part).stage(base);
  }
  // The other way: what this slot holds, to the same place of another map.
  __device__ __forceinline__ void unstage(const PixelShape& shape, const PixelsPart& part,
                                          T* out) const {
    const Run<T> all = run(shape, part);
    all.unstage(out);
  }

  struct Reader {
    T* first;
    __device__ __forceinline__ void read(unsigned c, A* values) const {
      values[0] = to_float(first[c]);
    }
  };
  __device__ __forceinline__ Reader of(const PixelShape& shape, const PixelsPart& part) const {
    return {run(shape, part).shared + (threadIdx.x >> part.bits) * shape.channels};
  }
};

// How neighbouring elements of some maps can be read.
struct Access {
  bool channels_last;
  bool packs;    // in 16-byte packs
  bool aligned;  // they start at 16-byte boundaries
};

// The source of the widest packs, for body(source).
template <class T, class Body>
void with_source(const T* base, const Access& access, const PixelShape& shape, const Body& body) {
  if (access.channels_last && access.packs) {
    body(PixelsSource<T, kPack<T>>{base});
  } else if (access.channels_last && access.aligned &&
             StagedSource<T>::bits(shape.channels, 2) <= kMostBits) {
    body(StagedSource<T>{base, 0});
  } else if (access.channels_last) {
    body(PixelsSource<T, 1>{base});
  } else if (access.packs) {
    body(PlanarSource<T, kPack<T>>{base});
  } else {
    body(PlanarSource<T, 1>{base});
  }
}

template <int N, class T, class A>
DENSESIAM_HD void store_rounded(T* target, const A (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n < N; ++n) pack.values[n] = from_float<T>(values[n]);
  store<N>(target, pack);
}

// How planar maps are split: warps of a block on the channels of a pixel (a power of two), blocks
// on the pixels of an image, as many pixels each in whole 128-byte lines: were the last block a
// quarter full, as a tile of threads leaves it, others would have that much more to do.
struct PlanarSplit {
  unsigned slices, blocks, pixels;

  // For threads of N pixels. Slices are enough to keep many loads under way where pixels are few
  // and channels many.
  static PlanarSplit of(const PixelShape& shape, unsigned N) {
    unsigned slices = 1;
    while (slices < kWarps && shape.channels >= slices * 64) slices *= 2;
    const auto blocks = unsigned(divide_up(shape.pixels, kThreads / slices * N));
    const unsigned line = 8 * N;
    return {slices, blocks, unsigned(divide_up(divide_up(shape.pixels, blocks), line)) * line};
  }
};

// This thread's part of a planar map.
template <int N>
struct PlanarPart {
  unsigned b, pixel, slice;
  bool inside;

  __device__ __forceinline__ PlanarPart(const PixelShape& shape, const PlanarSplit& split) {
    const unsigned warp = threadIdx.x / kLanes;
    const unsigned mine = (warp / split.slices * kLanes + threadIdx.x % kLanes) * N;
    b = blockIdx.x / split.blocks;
    pixel = blockIdx.x % split.blocks * split.pixels + mine;
    slice = warp % split.slices;
    inside = mine < split.pixels && pixel < shape.pixels;
  }
};

// Channels that a planar thread reads at once. float64 is for checks, not for speed: its
// exponential takes the registers.
template <class A>
constexpr int kChunk = sizeof(A) == 8 ? 1 : 4;

// Calls body(number, first) for what is left of a chunk: `most` numbers, half as many and so on.
template <int most, class Body>
__device__ __forceinline__ void finish_chunk(unsigned count, unsigned first, const Body& body) {
  if (first + most <= count) {
    body(std::integral_constant<int, most>{}, first);
    first += most;
  }
  if constexpr (most > 1) finish_chunk<most / 2>(count, first, body);
}

// Calls body(number, first) for the chunks of one slice, each of so many numbers from the first on:
// of kChunk, and in the end of half as many and so on.
template <int kChunk, class Body>
__device__ __forceinline__ void for_each_chunk(unsigned count, unsigned slice, unsigned slices,
                                               const Body& body) {
  unsigned first = slice * kChunk;
  for (; first + kChunk <= count; first += slices * kChunk) {
    body(std::integral_constant<int, kChunk>{}, first);
  }
  if constexpr (kChunk > 1) finish_chunk<kChunk / 2>(count, first, body);
}

template <int kAtOnce, class Body>
__device__ __forceinline__ void strided_packs(unsigned packs, unsigned first, unsigned lanes,
                                              const Body& body) {
  for (; first + (kAtOnce - 1) * lanes < packs; first += kAtOnce * lanes) {
    body(std::integral_constant<int, kAtOnce>{}, first, lanes);
  }
  if constexpr (kAtOnce > 1) strided_packs<kAtOnce / 2>(packs, first, lanes, body);
}

// Calls body(number, first, step) for this lane's packs first, first + step, ... that come next, at
// most kAtOnce of them, half as many and so on at the end. Loads of neighbouring lanes are
// neighbours; in shared memory neighbouring packs are a lane's own, whose addresses differ by
// constants.
template <class Source, int kAtOnce = Source::kAtOnce, class Body>
__device__ __forceinline__ void for_each_packs(unsigned packs, const PixelsPart& part,
                                               const Body& body) {
  if constexpr (Source::kStaged) {
    using One = std::integral_constant<unsigned, 1>;
    for_each_chunk<kAtOnce>(packs, part.lane, part.lanes,
                            [&](auto number, unsigned first) { body(number, first, One{}); });
  } else {
    strided_packs<kAtOnce>(packs, part.lane, part.lanes, body);
  }
}

// After it, slice 0 of each pixel has what all slices found.
template <int N, class Sums>
__device__ __forceinline__ void merge_slices(Sums (&sums)[N], unsigned slice, unsigned slices) {
  if (slices == 1) return;
  DENSESIAM_SHARED(Sums, exchange, kThreads);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    exchange[threadIdx.x] = sums[n];
    __syncthreads();
    if (slice == 0) {
      for (unsigned s = 1; s < slices; ++s) sums[n].merge(exchange[threadIdx.x + s * kLanes]);
    }
    __syncthreads();
  }
}

// The lanes that share a pixel of a pixels-layout map, 2^bits, have neighbouring packs of a line of
// memory; they are more where each would have more packs than it reads at once.
inline unsigned pixel_bits(unsigned packs, unsigned at_once) {
  unsigned bits = 0;
  while (bits < kMostBits && 1u << bits < packs && (bits < 3 || at_once << bits < packs)) ++bits;
  return bits;
}

// Blocks that a multiprocessor's registers have room for, at least: of those that stage their
// pixels one computes while others load, so that they are so many.
template <class Source, int Staged>
constexpr int kResident =
    Source::kStaged && sizeof(typename Source::A) == 4 ? Staged : kBlocks<typename Source::A>;

// What reads this thread's pixel.
template <class Source>
__device__ __forceinline__ auto reader_of(const Source& source, const PixelShape& shape,
                                          const PixelsPart& part) {
  if constexpr (Source::kStaged) {
    return source.of(shape, part);
  } else {
    return source.at(shape, part.b, part.pixel);
  }
}

// Where the gradient of this thread's pixel goes: to its place in the map, or, for the block to
// copy, to that of the pixel in shared memory.
template <class Source>
struct GradientPlace {
  using T = typename Source::T;
  using A = typename Source::A;
  static constexpr int N = Source::N;
  T* target;

  __device__ __forceinline__ GradientPlace(const Source& source, const PixelShape& shape,
                                           const PixelsPart& part, T* out) {
    if constexpr (Source::kStaged) {
      target = source.of(shape, part).first;
    } else {
      target = out + (std::int64_t(part.b) * shape.pixels + part.pixel) * shape.channels;
    }
  }
  __device__ __forceinline__ void put(unsigned c, const A* values) const {
    Pack<T, N> pack;
#pragma unroll
    for (int n = 0; n < N; ++n) pack.values[n] = from_float<T>(values[n]);
    if constexpr (Source::kStaged) {
      target[c] = pack.values[0];
    } else {
      store<N>(target + c, pack);
    }
  }
  __device__ __forceinline__ void clear(const PixelShape& shape, const PixelsPart& part) const {
    const A zeros[N] = {};
#pragma unroll 1
    for (unsigned c = part.lane * N; c < shape.channels; c += part.lanes * N) put(c, zeros);
  }
};

// How a launch on such a source shares the channels and, if planar, the pixels; its number of
// blocks, and their shared memory, of so many maps.
template <class Source>
struct Sharing {
  std::conditional_t<Source::kPixelsLayout, unsigned, PlanarSplit> share;  // bits of lanes, if not
  unsigned blocks;
  std::size_t bytes = 0;

  explicit Sharing(const PixelShape& shape, unsigned maps) {
    if constexpr (!Source::kPixelsLayout) {
      share = PlanarSplit::of(shape, Source::N);
      blocks = share.blocks * shape.batch;
    } else {
      if constexpr (Source::kStaged) {
        share = Source::bits(shape.channels, maps);
        bytes = maps * Source::room(shape.channels, share) * sizeof(typename Source::T);
      } else {
        share = pixel_bits(shape.channels / Source::N, Source::kAtOnce);
      }
      blocks = PixelsPart::blocks(shape, share);
    }
  }
};

// The gradient of the loss: of every pixel, or of their mean.
template <class A>
struct Upstream {
  const A* grad;  // [B, P], or [] of a mean
  bool mean;
  ImageWeights<A> weights;  // [B]
  unsigned batch;

  // What an image's weight makes of the gradient: a factor of each pixel's, or that itself of a
  // mean; whether the image counts at all.
  struct Share {
    A factor;
    bool counts;
  };
  // All lanes of a warp call it, so that a launch before this one need not sum the weights.
  __device__ __forceinline__ Share share(const PixelShape& shape, unsigned b) const {
    const A weight = weights[b];
    const bool counts = weight != A(0);
    if (!mean) return {weight, counts};
    A own = A(1), sum = A(batch);
    if (weights.type != WeightType::none) {
      const unsigned lane = threadIdx.x % kLanes;
      const Lanes lanes{kLanes};
      A most = weights.largest(lane, kLanes, batch);
      lanes.exchange([&](const auto& other) { most = larger(most, other(most)); });
      const A unit = inverse_unit(most);
      own = in_units(weight, unit);
      sum = A(0);
#pragma unroll 1
      for (unsigned i = lane; i < batch; i += kLanes) sum += in_units(weights[i], unit);
      lanes.sum(sum);
    }
    const A total = A(shape.pixels) * sum;
    return {total == A(0) ? A(0) : own * (load(grad) * quotient(A(1), total)), counts};
  }
  template <int N>
  DENSESIAM_HD void read(const PixelShape& shape, unsigned b, unsigned pixel, A factor,
                         A (&values)[N]) const {
    if (mean) {
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = factor;
    } else {
      load_row(grad + std::int64_t(b) * shape.pixels + pixel, values);
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] *= factor;
    }
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
