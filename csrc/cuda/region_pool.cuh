// region_pool: features summed over soft regions, the softmax fused into the matrix product.
//
//   m = softmax over n of logits                      (never in global memory)
//   r[b, n, c] = sum_p m[b, n, p] f[b, c, p],  mass[b, n] = sum_p m[b, n, p]
//   df[b, c, p] = sum_n m[b, n, p] g[b, n, c]
//   dm[b, n, p] = sum_c g[b, n, c] f[b, c, p] + g_mass[b, n]
//   dlogits = m (dm - sum_n m dm)
//
// Three tiled products (products.cuh): float32 and float64 on CUDA cores; half types on tensor
// cores in tf32, which holds their features exactly and rounds masks and gradients to 11 bits.
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
template <class T>
struct Map {
  T* base;
  unsigned rows, pixels;
  bool channels_last;

  DENSESIAM_HD T* at(unsigned b, unsigned row, unsigned pixel) const {
    const std::int64_t image = std::int64_t(b) * rows * pixels;
    return base + image + (channels_last ? pixel * rows + row : row * pixels + pixel);
  }
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

// Calls put(row, pixel, value) for a Rows x Pixels part of a map that starts at (row0, pixel0); 0
// outside the map. Packs: whether the map can be read in 16-byte packs. RowsInside: whether rows
// are neighbours in the tile that put() writes, else pixels. Ahead: packs that a lane loads before
// it puts them.
template <int Rows, int Pixels, bool Packs, bool RowsInside, int Ahead = 2, class T, class Put>
__device__ __forceinline__ void read_part(const Map<const T>& map, unsigned b, unsigned row0,
                                          unsigned pixel0, const Put& put) {
  using A = Accumulate<T>;
  constexpr int N = Packs ? kPack<T> : 1;
  constexpr unsigned beside = N > 1 ? 2 : 8;
#pragma unroll Ahead
  for (unsigned item = threadIdx.x; item < Rows * Pixels / N; item += kThreads) {
    const PackPlace at = map.channels_last ? PackPlace::of<Rows / N, beside, RowsInside>(item)
                                           : PackPlace::of<Pixels / N, beside, !RowsInside>(item);
    const unsigned row = map.channels_last ? at.pack * N : at.line;
    const unsigned pixel = map.channels_last ? at.line : at.pack * N;
    Pack<T, N> pack;
    const bool inside = row0 + row < map.rows && pixel0 + pixel < map.pixels;
    if (inside) pack = load<N>(map.at(b, row0 + row, pixel0 + pixel));
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const A value = inside ? A(to_float(pack.values[n])) : A(0);
      put(row + (map.channels_last ? n : 0), pixel + (map.channels_last ? 0 : n), value);
    }
  }
}

// Columns of the products whose rows are regions: a tile of sums is 8192 or 4096 numbers.
template <int Regions>
constexpr int kColumns = Regions == 32 ? 128 : 64;

constexpr unsigned kMostRegions = 128;  // that a block can hold

template <class T>
__global__ void __launch_bounds__(kThreads)
    region_log_sum(Map<const T> logits,                 // [B, N, P]
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

// How the forward is cut: pixels into splits of so many steps, regions and channels into tiles.
struct RegionSplit {
  unsigned splits, steps, region_tiles, channel_tiles;
};

// Parts (splits, B, N, C) and (splits, B, N). `fused`: log_sum is written here, else it is read.
template <int Regions, bool FeaturePacks, bool LogitPacks, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulate<T>>)
    region_pool_forward(Map<const T> features,  // [B, C, P]
                        Map<const T> logits,    // [B, N, P]
                        RegionShape shape, RegionSplit split, bool fused,
                        Accumulate<T>* __restrict__ log_sum,    // [B, P]
                        Accumulate<T>* __restrict__ parts,      // [splits, B, N, C]
                        Accumulate<T>* __restrict__ mass_parts  // [splits, B, N]
    ) {
  using A = Accumulate<T>;
  constexpr int depth = kDepth<A>, stride = kStride<A>, columns = kColumns<Regions>;
  // Where neither map has packs, two addresses at once are more than the registers hold.
  constexpr int ahead = FeaturePacks || LogitPacks ? 2 : 1;
  DENSESIAM_SHARED(A, mask, Regions * stride);
  DENSESIAM_SHARED(A, values, columns * stride);
  unsigned block = blockIdx.x;
  const unsigned channel0 = block % split.channel_tiles * columns;
  block /= split.channel_tiles;
  const unsigned region0 = block % split.region_tiles * Regions;
  block /= split.region_tiles;
  const unsigned s = block % split.splits, b = block / split.splits;

  constexpr int group = kThreads / depth;  // lanes that share a pixel's softmax
  constexpr int each = Regions / group;
  const unsigned k = threadIdx.x / group, member = threadIdx.x % group;
  A mass[each] = {};
  Product<T, Regions, columns> product;
  product.clear();
  const unsigned begin = s * split.steps * depth;
  const unsigned limit = begin + split.steps * depth;
  const unsigned end = limit < shape.pixels ? limit : shape.pixels;
  for (unsigned pixel0 = begin; pixel0 < end; pixel0 += depth) {
    read_part<Regions, depth, LogitPacks, false, ahead>(
        logits, b, region0, pixel0,
        [&](unsigned row, unsigned pixel, A value) { mask[row * stride + pixel] = value; });
    read_part<columns, depth, FeaturePacks, false, ahead>(
        features, b, channel0, pixel0,
        [&](unsigned row, unsigned pixel, A value) { values[row * stride + pixel] = value; });
    __syncthreads();

    const bool inside = pixel0 + k < end;
    const std::int64_t pixel = std::int64_t(b) * shape.pixels + pixel0 + k;
    A log_mass = A(0);
    if (fused) {
      LogSumExp<A> sum = LogSumExp<A>::identity();
      A most = kLowest<A>;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const unsigned row = member + i * group;
        if (row < shape.regions) most = larger(most, mask[row * stride + k]);
      }
      sum.max = most;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const unsigned row = member + i * group;
        if (row < shape.regions) sum.sum += exponential(mask[row * stride + k] - most);
      }
      sum.merge(Lanes{group});
      log_mass = sum.value();
      if (inside && member == 0 && channel0 == 0) store(log_sum + pixel, log_mass);
    } else if (inside) {
      log_mass = load(log_sum + pixel);
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const unsigned row = member + i * group;
      const bool counts = inside && region0 + row < shape.regions;
      const A value = counts ? exponential(mask[row * stride + k] - log_mass) : A(0);
      mask[row * stride + k] = value;
      mass[i] += value;
    }
    __syncthreads();
    product.add(mask, values);
    __syncthreads();
  }

  const std::int64_t image = std::int64_t(s) * shape.batch + b;
  product.visit([&](unsigned row, unsigned column, A sum) {
    if (region0 + row >= shape.regions || channel0 + column >= shape.channels) return;
    store(parts + (image * shape.regions + region0 + row) * shape.channels + channel0 + column,
          sum);
  });
  if (channel0 != 0) return;
#pragma unroll
  for (int i = 0; i < each; ++i) mask[(member + i * group) * stride + k] = mass[i];
  __syncthreads();
  const unsigned row = threadIdx.x;
  if (row < Regions && region0 + row < shape.regions) {
    A total = A(0);
    for (int pixel = 0; pixel < depth; ++pixel) total += mask[row * stride + pixel];
    store(mass_parts + image * shape.regions + region0 + row, total);
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

template <bool Packs, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulate<T>>)
    region_pool_features(const Accumulate<T>* __restrict__ grad,     // [B, N, C]
                         Map<const T> logits,                        // [B, N, P]
                         const Accumulate<T>* __restrict__ log_sum,  // [B, P]
                         RegionShape shape, Map<T> out               // [B, C, P]
    ) {
  using A = Accumulate<T>;
  constexpr int depth = kDepth<A>, stride = kStride<A>;
  DENSESIAM_SHARED(A, mask, kTile * stride);       // [pixel][region]
  DENSESIAM_SHARED(A, gradients, kTile * stride);  // [channel][region]
  const unsigned channel_tiles = (shape.channels + kTile - 1) / kTile;
  const unsigned pixel_tiles = (shape.pixels + kTile - 1) / kTile;
  const unsigned channel0 = blockIdx.x % channel_tiles * kTile;
  const unsigned pixel0 = blockIdx.x / channel_tiles % pixel_tiles * kTile;
  const unsigned b = blockIdx.x / channel_tiles / pixel_tiles;
  const A* kept = log_sum + std::int64_t(b) * shape.pixels + pixel0;
  const A* image = grad + std::int64_t(b) * shape.regions * shape.channels;

  Product<T, kTile, kTile> product;
  product.clear();
  for (unsigned region0 = 0; region0 < shape.regions; region0 += depth) {
    read_part<depth, kTile, Packs, true>(
        logits, b, region0, pixel0, [&](unsigned region, unsigned pixel, A value) {
          const bool counts = region0 + region < shape.regions && pixel0 + pixel < shape.pixels;
          mask[pixel * stride + region] = counts ? exponential(value - load(kept + pixel)) : A(0);
        });
    for (unsigned item = threadIdx.x; item < depth * kTile; item += kThreads) {
      const unsigned channel = item % kTile, region = item / kTile;
      const bool counts = region0 + region < shape.regions && channel0 + channel < shape.channels;
      gradients[channel * stride + region] =
          counts ? load(image + (region0 + region) * shape.channels + channel0 + channel) : A(0);
    }
    __syncthreads();
    // Neighbouring columns are written together: they are what is contiguous in the layout.
    product.add(out.channels_last ? mask : gradients, out.channels_last ? gradients : mask);
    __syncthreads();
  }
  product.visit([&](unsigned row, unsigned column, A sum) {
    const unsigned channel = channel0 + (out.channels_last ? column : row);
    const unsigned pixel = pixel0 + (out.channels_last ? row : column);
    if (channel < shape.channels && pixel < shape.pixels) {
      store(out.at(b, channel, pixel), from_float<T>(sum));
    }
  });
}

template <int Regions, bool Packs, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulate<T>>)
    region_pool_logits(const Accumulate<T>* __restrict__ grad,       // [B, N, C]
                       const Accumulate<T>* __restrict__ grad_mass,  // [B, N] or null
                       Map<const T> features,                        // [B, C, P]
                       Map<const T> logits,                          // [B, N, P]
                       const Accumulate<T>* __restrict__ log_sum,    // [B, P]
                       RegionShape shape, Map<T> out                 // [B, N, P]
    ) {
  using A = Accumulate<T>;
  using Tiles = Product<T, Regions, kColumns<Regions>>;
  constexpr int depth = kDepth<A>, stride = kStride<A>, columns = kColumns<Regions>;
  DENSESIAM_SHARED(A, gradients, Regions * stride);  // [region][channel]
  DENSESIAM_SHARED(A, values, columns * stride);     // [pixel][channel]
  DENSESIAM_SHARED(A, scratch, Tiles::kParts * columns);
  DENSESIAM_SHARED(A, dots, columns);  // sum_n m dm of each pixel
  const unsigned pixel_tiles = (shape.pixels + columns - 1) / columns;
  const unsigned pixel0 = blockIdx.x % pixel_tiles * columns, b = blockIdx.x / pixel_tiles;
  const A* kept = log_sum + std::int64_t(b) * shape.pixels + pixel0;
  const A* image = grad + std::int64_t(b) * shape.regions * shape.channels;
  Tiles product;

  const auto multiply = [&](unsigned region0) {
    product.clear();
    for (unsigned channel0 = 0; channel0 < shape.channels; channel0 += depth) {
      __syncthreads();  // the tiles and scratch are free again
      for (unsigned item = threadIdx.x; item < Regions * depth; item += kThreads) {
        const unsigned channel = item % depth, region = item / depth;
        const bool counts = region0 + region < shape.regions && channel0 + channel < shape.channels;
        gradients[region * stride + channel] =
            counts ? load(image + (region0 + region) * shape.channels + channel0 + channel) : A(0);
      }
      read_part<depth, columns, Packs, true>(features, b, channel0, pixel0,
                                             [&](unsigned channel, unsigned pixel, A value) {
                                               values[pixel * stride + channel] = value;
                                             });
      __syncthreads();
      product.add(gradients, values);
    }
  };
  // Calls body(region, pixel, m, dm) for a sum of the product; 0 outside.
  const auto at = [&](unsigned region0, unsigned row, unsigned column, A sum, const auto& body) {
    const unsigned region = region0 + row, pixel = pixel0 + column;
    if (region >= shape.regions || pixel >= shape.pixels) return A(0);
    // Not exponential(): its assembly keeps the compiler from loading for the next sums meanwhile,
    // and this waits for memory.
    const A m = std::exp(A(to_float(load(logits.at(b, region, pixel)))) - load(kept + column));
    const A mass =
        grad_mass == nullptr ? A(0) : load(grad_mass + std::int64_t(b) * shape.regions + region);
    return body(region, pixel, m, sum + mass);
  };

  A dot = A(0);
  for (unsigned region0 = 0; region0 < shape.regions; region0 += Regions) {
    multiply(region0);
    product.column_sums(scratch, [&](unsigned row, unsigned column, A sum) {
      return at(region0, row, column, sum,
                [](unsigned, unsigned, A m, A gradient) { return m * gradient; });
    });
    __syncthreads();
    if (threadIdx.x < columns) {
      for (int part = 0; part < Tiles::kParts; ++part) {
        dot += scratch[part * columns + threadIdx.x];
      }
    }
  }
  if (threadIdx.x < columns) dots[threadIdx.x] = dot;
  __syncthreads();
  for (unsigned region0 = 0; region0 < shape.regions; region0 += Regions) {
    if (shape.regions > Regions) multiply(region0);  // else the sums are still there
    product.visit([&](unsigned row, unsigned column, A sum) {
      at(region0, row, column, sum, [&](unsigned region, unsigned pixel, A m, A gradient) {
        store(out.at(b, region, pixel), from_float<T>(m * (gradient - dots[column])));
        return A(0);
      });
    });
  }
}

// Blocks of the forward: 256 or a little more, so that any GPU is full and the parts stay small.
template <int Regions, class A>
RegionSplit split_regions(const RegionShape& shape) {
  RegionSplit split;
  split.region_tiles = unsigned(divide_up(shape.regions, Regions));
  // Without channels there is still the mass.
  split.channel_tiles = unsigned(divide_up(shape.channels ? shape.channels : 1, kColumns<Regions>));
  const std::uint64_t tiles = std::uint64_t(split.region_tiles) * split.channel_tiles * shape.batch;
  const std::uint64_t steps = divide_up(shape.pixels, kDepth<A>);
  const std::uint64_t wanted = divide_up(256, tiles);
  split.steps = unsigned(divide_up(steps, wanted < steps ? wanted : steps));
  split.splits = unsigned(divide_up(steps, split.steps));
  return split;
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
