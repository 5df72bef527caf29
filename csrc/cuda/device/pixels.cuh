// How kernels that work pixel by pixel read (B, C, P) maps and share the channels of a pixel.
//
// Planar maps: a thread has N neighbouring pixels and walks along channels; where there are many
// channels, `slices` warps of the block take every slices-th chunk each and merge what they
// found. Pixels-layout (channels_last) maps: `lanes` neighbouring lanes have one pixel, N channels
// each at a time. Every sum is merged in an order that shape alone decides.
#pragma once

#include "block.cuh"

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
  static constexpr bool kPixelsLayout = false;
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

// N neighbouring channels of a pixel of a pixels-layout map.
template <class T_, int N_>
struct PixelsSource {
  using T = T_;
  using A = Accumulate<T>;
  static constexpr int N = N_;
  static constexpr bool kPixelsLayout = true;
  const T* base;

  struct Reader {
    const T* first;
    __device__ __forceinline__ void read(unsigned c, A (&values)[N]) const {
      const auto pack = load<N>(first + c);
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = to_float(pack.values[n]);
    }
  };
  __device__ __forceinline__ Reader at(const PixelShape& shape, unsigned b, unsigned pixel) const {
    return {base + (std::int64_t(b) * shape.pixels + pixel) * shape.channels};
  }
};

// The source of the widest packs that are aligned, for body(source).
template <class T, class Body>
void with_source(const T* base, bool channels_last, bool packs, const Body& body) {
  if (channels_last && packs) {
    body(PixelsSource<T, kPack<T>>{base});
  } else if (channels_last) {
    body(PixelsSource<T, 1>{base});
  } else if (packs) {
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

// Warps that share the channels of a pixel: enough to keep many loads under way where pixels are
// few and channels many.
inline unsigned channel_slices(unsigned channels) {
  unsigned slices = 1;
  while (slices < kWarps && channels >= slices * 64) slices *= 2;
  return slices;
}

// This thread's part of a planar map.
template <int N>
struct PlanarPart {
  unsigned b, pixel, slice;
  bool inside;

  __device__ __forceinline__ PlanarPart(const PixelShape& shape, unsigned slices) {
    const unsigned tile = kThreads / slices * N;
    const unsigned tiles = (shape.pixels + tile - 1) / tile;
    const unsigned warp = threadIdx.x / kLanes;
    b = blockIdx.x / tiles;
    pixel = blockIdx.x % tiles * tile + (warp / slices * kLanes + threadIdx.x % kLanes) * N;
    slice = warp % slices;
    inside = pixel < shape.pixels;
  }
  static unsigned blocks(const PixelShape& shape, unsigned slices) {
    return unsigned(divide_up(shape.pixels, kThreads / slices * N) * shape.batch);
  }
};

// Channels that a planar thread reads at once. float64 is for checks, not for speed: its
// exponential takes the registers.
template <class A>
constexpr int kChunk = sizeof(A) == 8 ? 1 : 4;

// Calls body(chunk size, first channel) for the chunks of one slice; the last may be of one
// channel.
template <int kChunk, class Body>
__device__ __forceinline__ void for_each_chunk(unsigned channels, unsigned slice, unsigned slices,
                                               const Body& body) {
  unsigned c = slice * kChunk;
  for (; c + kChunk <= channels; c += slices * kChunk) {
    body(std::integral_constant<int, kChunk>{}, c);
  }
  for (; c < channels; ++c) body(std::integral_constant<int, 1>{}, c);
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

// Lanes that share a pixel of a pixels-layout map: a power of two.
inline unsigned pixel_lanes(unsigned packs) {
  unsigned lanes = 1;
  while (lanes < kLanes && lanes < packs) lanes *= 2;
  return lanes;
}

// Pixels that a thread works on at once: narrow loads need more of them under way.
template <class Source>
constexpr int kPixelsAtOnce = Source::N == 1 && sizeof(typename Source::A) == 4 ? 4 : 1;

// This thread's part of a pixels-layout map.
template <class Source>
struct PixelsPart {
  unsigned b, lane;
  unsigned pixel[kPixelsAtOnce<Source>];

  __device__ __forceinline__ PixelsPart(const PixelShape& shape, unsigned lanes) {
    const unsigned groups = kThreads / lanes, tile = groups * kPixelsAtOnce<Source>;
    const unsigned tiles = (shape.pixels + tile - 1) / tile;
    b = blockIdx.x / tiles;
    lane = threadIdx.x % lanes;
#pragma unroll
    for (int r = 0; r < kPixelsAtOnce<Source>; ++r) {
      pixel[r] = blockIdx.x % tiles * tile + r * groups + threadIdx.x / lanes;
    }
  }
  static unsigned blocks(const PixelShape& shape, unsigned lanes) {
    return unsigned(divide_up(shape.pixels, kThreads / lanes * kPixelsAtOnce<Source>) *
                    shape.batch);
  }
};

// How a launch on such a source shares the channels (slices or lanes), and its number of blocks.
template <class Source>
struct Sharing {
  unsigned share, blocks;

  explicit Sharing(const PixelShape& shape) {
    if constexpr (Source::kPixelsLayout) {
      share = pixel_lanes(shape.channels / Source::N);
      blocks = PixelsPart<Source>::blocks(shape, share);
    } else {
      share = channel_slices(shape.channels);
      blocks = PlanarPart<Source::N>::blocks(shape, share);
    }
  }
};

// After it, every lane of a pixel has what all its lanes found.
template <int R, class Sums>
__device__ __forceinline__ void merge_lanes(Sums (&sums)[R], unsigned lanes) {
#pragma unroll 1
  for (unsigned bits = lanes / 2; bits > 0; bits /= 2) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      sums[r].merge(sums[r].map(
          [&](auto value) { return decltype(value)(__shfl_xor_sync(kAllLanes, value, bits)); }));
    }
  }
}

// The gradient of the loss: of every pixel, or one number, what the sum of all is multiplied by.
template <class A>
struct Upstream {
  const A* grad;
  bool mean;
  template <int N>
  DENSESIAM_HD void read(const PixelShape& shape, unsigned b, unsigned pixel,
                         A (&values)[N]) const {
    if (mean) {
      const A one = load(grad);
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] = one;
    } else {
      load_row(grad + std::int64_t(b) * shape.pixels + pixel, values);
    }
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
