// Losses between the channels of p and z: functors that pixel_loss.h and overlap_similarity take.
//
// A loss L has two functions, each of any accumulation type A:
//   L::tile<Bytes>(p, z, channels, count, out) the losses of `count` pixels, and two statistics
//   L::gradient(p, z, first, second, grad)     dp of one element, from its pixel's statistics and
//                                              upstream gradient
// and may have a third, for vectors whose channels lie next to each other:
//   L::pixels<Bytes>(p, z, channels, count, out)
#pragma once

#include <string>

#include "support/simd.h"
#include "support/softmax.h"

namespace densesiam {

// Per-pixel results of one tile.
template <class A>
struct TileLosses {
  A loss[kTile], first[kTile], second[kTile];

  // What an image of weight 0 has, whatever it holds.
  DENSESIAM_HD void clear(int count) {
    for (int i = 0; i < count; ++i) loss[i] = first[i] = second[i] = A(0);
  }
  // A pixel's loss times its image's weight.
  DENSESIAM_HD void weigh(int i, A weight) {
    const bool counts = weight != A(0);
    loss[i] = counts ? loss[i] * weight : A(0);
    first[i] = counts ? first[i] : A(0);
    second[i] = counts ? second[i] : A(0);
  }
};

// Sums over channels are taken over a few at a time and then added up: rounding grows with the root
// of the number of terms in a sum.
constexpr std::int64_t kSummed = 64;

// Sums in flight at a time over vectors of channels: an addition takes four cycles.
constexpr int kChains = 2;

// Vectors of pixels whose sums stay in registers together, three of each: AVX-512 has 32 of them.
template <int Bytes>
constexpr int kTogether = Bytes == 64 ? 8 : 4;

// Rows of a short plane that are fetched before they are read: one after the other they are a
// stream that the processor does not run far enough ahead of by itself.
constexpr int kAhead = 16;

// Lane i of vectors[0] = the sum of vector i's lanes; the others are changed. Each step adds what a
// transposition would move, and so halves the vectors that are left.
template <int Lanes, int Step = 1, class V>
DENSESIAM_HD void sum_lanes(V* vectors  // [Lanes]
) {
  if constexpr (Step < Lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < Lanes; i += 2 * Step) {
      exchange<Step>(vectors[i], vectors[i + Step], std::make_index_sequence<Lanes>{});
      vectors[i] += vectors[i + Step];
    }
    sum_lanes<Lanes, 2 * Step>(vectors);
  }
}

// What the vectors of each pixel are multiplied by before they are squared.
template <class A>
struct TileScales {
  A p[kTile], z[kTile];
};

// Squares overflow from half the exponents on. Vectors whose square is above 3/4 of them are scaled
// down by 5/8 of them: what then vanishes is nothing beside the rest, and none of the three sums
// overflows.
template <class A>
constexpr A kLargeSquare = sizeof(A) == 8 ? A(0x1p768) : A(0x1p96f);
template <class A>
constexpr A kScaleOfLarge = sizeof(A) == 8 ? A(0x1p-640) : A(0x1p-80f);

// The scales of vectors of these squares; whether any is not 1. NaN is large too.
template <class A>
DENSESIAM_HD bool scales_of(const A* pp,  // [count]
                            const A* zz,  // [count]
                            int count, TileScales<A>& scales) {
  A least = 1;
#pragma omp simd reduction(min : least)
  for (int i = 0; i < count; ++i) {
    scales.p[i] = pp[i] < kLargeSquare<A> ? A(1) : kScaleOfLarge<A>;
    scales.z[i] = zz[i] < kLargeSquare<A> ? A(1) : kScaleOfLarge<A>;
    const A smaller = scales.p[i] < scales.z[i] ? scales.p[i] : scales.z[i];
    least = smaller < least ? smaller : least;
  }
  return least < A(1);
}

// The three sums, of several vectors.
template <class V, int Vectors>
struct Products {
  V pp[Vectors]{}, zz[Vectors]{}, pz[Vectors]{};

  DENSESIAM_HD void add(int i, const V& u, const V& v) {
    pp[i] += u * u;
    zz[i] += v * v;
    pz[i] += u * v;
  }
  template <int Others>
  DENSESIAM_HD void add(int i, const Products<V, Others>& others, int other) {
    pp[i] += others.pp[other];
    zz[i] += others.zz[other];
    pz[i] += others.pz[other];
  }
};

// |p|^2, |z|^2 and p.z of each pixel, in the places of loss, first and second statistic. Sums of a
// few vectors of pixels at a time stay in registers. The last vectors overlap those before them
// and give the same twice.
template <int Lanes, int Together, bool Scaled, class A>
DENSESIAM_HD void sum_products(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                               const TileScales<A>& scales, TileLosses<A>& out) {
  static_assert(kTile % (Lanes * Together) == 0);
  using V = Vector<A, Lanes>;
  const auto place = [&](int i) DENSESIAM_INLINE { return std::min(i * Lanes, count - Lanes); };
  const bool ahead = p.stride < kTile;
  Products<V, kTile / Lanes> all;
  for (std::int64_t start = 0; start < channels; start += kSummed) {
    for (int first = 0; first * Lanes < count; first += Together) {
      Products<V, Together> part;
      int from[Together];
      for (int i = 0; i < Together; ++i) from[i] = place(first + i);
      for (std::int64_t c = start; c < std::min(channels, start + kSummed); ++c) {
        if (ahead) {
          const std::int64_t next = std::min(c + kAhead, channels - 1);
          constexpr int kALine = std::max(1, 64 / int(sizeof(V)));
#pragma GCC unroll 8
          for (int i = 0; i < Together; i += kALine) {
            __builtin_prefetch(p.row(next) + from[i]);
            __builtin_prefetch(z.row(next) + from[i]);
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < Together; ++i) {
          V u, v;
          load_vector(p.row(c) + from[i], u);
          load_vector(z.row(c) + from[i], v);
          if constexpr (Scaled) {
            V scale;
            load_vector(scales.p + from[i], scale);
            u *= scale;
            load_vector(scales.z + from[i], scale);
            v *= scale;
          }
          part.add(i, u, v);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < Together; ++i) all.add(first + i, part, i);
    }
  }
  for (int i = 0; i * Lanes < count; ++i) {
    store_vector(all.pp[i], out.loss + place(i));
    store_vector(all.zz[i], out.first + place(i));
    store_vector(all.pz[i], out.second + place(i));
  }
}

// The same with no more vectors together, and no wider ones, than there are pixels for.
template <int Lanes, int Together, bool Scaled, class A>
DENSESIAM_HD void sum_products_of_tile(Tile<const A> p, Tile<const A> z, std::int64_t channels,
                                       int count, const TileScales<A>& scales, TileLosses<A>& out) {
  if constexpr (Together > 2) {
    if (count <= Together / 2 * Lanes) {
      return sum_products_of_tile<Lanes, Together / 2, Scaled>(p, z, channels, count, scales, out);
    }
  } else if constexpr (Lanes > 1) {
    if (count < Lanes) {
      return sum_products_of_tile<Lanes / 2, Together, Scaled>(p, z, channels, count, scales, out);
    }
  }
  sum_products<Lanes, Together, Scaled>(p, z, channels, count, scales, out);
}

// Fewer channels than these are not read without a tile: they would leave lanes empty.
constexpr std::int64_t kFewChannels = 16;

// The same of pixels whose channels, kFewChannels or more, lie next to each other, without a tile:
// a lane of a register sums every kLanes-th channel, and lanes are added up of kLanes pixels at
// once.
template <int Bytes, bool Scaled, class T>
DENSESIAM_HD void sum_products_of_pixels(const T* p,  // [count, C]
                                         const T* z,  // [count, C]
                                         std::int64_t channels, int count,
                                         const TileScales<Accumulate<T>>& scales,
                                         TileLosses<Accumulate<T>>& out) {
  using A = Accumulate<T>;
  constexpr int kLanes = Bytes / int(sizeof(A));
  static_assert(kLanes <= kFewChannels);
  using V = Vector<A, kLanes>;
  // The last channels are read along with as many before them as fill a vector, which do not count.
  const std::int64_t whole = channels / kLanes * kLanes, last = channels - kLanes;
  decltype(V{} < V{}) counts;
  for (int lane = 0; lane < kLanes; ++lane) counts[lane] = last + lane >= whole ? -1 : 0;
  for (int from = 0; from < count; from += kLanes) {
    const int pixels = std::min(kLanes, count - from);
    V pp[kLanes], zz[kLanes], pz[kLanes];
    for (int i = pixels; i < kLanes; ++i) pp[i] = zz[i] = pz[i] = V{};
    for (int i = 0; i < pixels; ++i) {
      const T* a = p + (from + i) * channels;
      const T* b = z + (from + i) * channels;
      Products<V, 1> all;
      for (std::int64_t start = 0; start < channels; start += kSummed * kLanes) {
        const std::int64_t end = std::min(whole, start + kSummed * kLanes);
        Products<V, kChains> part;
        const auto add = [&](std::int64_t c, int chain, bool rest) DENSESIAM_INLINE {
          V u, v;
          load_vector(a + c, u);
          load_vector(b + c, v);
          if (rest) {
            u = counts ? u : V{};
            v = counts ? v : V{};
          }
          if constexpr (Scaled) {
            u *= scales.p[from + i];
            v *= scales.z[from + i];
          }
          part.add(chain, u, v);
        };
        std::int64_t c = start;
        for (; c + kChains * kLanes <= end; c += kChains * kLanes) {
#pragma GCC unroll 4
          for (int chain = 0; chain < kChains; ++chain) add(c + chain * kLanes, chain, false);
        }
        for (; c + kLanes <= end; c += kLanes) add(c, 0, false);
        if (start + kSummed * kLanes >= channels && whole < channels) add(last, 1, true);
        for (int chain = 0; chain < kChains; ++chain) all.add(0, part, chain);
      }
      pp[i] = all.pp[0];
      zz[i] = all.zz[0];
      pz[i] = all.pz[0];
    }
    // Whole vectors, also beyond the last pixel: a tile has room for them.
    const auto store = [&](V* vectors, A* sums) DENSESIAM_INLINE {
      sum_lanes<kLanes>(vectors);
      std::memcpy(sums + from, &vectors[0], sizeof(V));
    };
    store(pp, out.loss);
    store(zz, out.first);
    store(pz, out.second);
  }
}

// A loss of those three numbers: Loss::finish(pp, zz, pz, p_scale, z_scale, loss, a, b), and
// dp = -g (a z - b p).
template <class Loss>
struct LossOfProducts {
  template <int Bytes, class A>
  static DENSESIAM_HD void tile(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                                TileLosses<A>& out) {
    constexpr int kLanes = Bytes / int(sizeof(A)), kFew = kTogether<Bytes>;
    TileScales<A> scales;
    sum_products_of_tile<kLanes, kFew, false>(p, z, channels, count, scales, out);
    if (scales_of(out.loss, out.first, count, scales)) {
      sum_products_of_tile<kLanes, kFew, true>(p, z, channels, count, scales, out);
    }
    finish_all(count, scales, out);
  }
  template <int Bytes, class T>
  static DENSESIAM_HD void pixels(const T* p,  // [count, C]
                                  const T* z,  // [count, C]
                                  std::int64_t channels, int count,
                                  TileLosses<Accumulate<T>>& out) {
    TileScales<Accumulate<T>> scales;
    sum_products_of_pixels<Bytes, false>(p, z, channels, count, scales, out);
    if (scales_of(out.loss, out.first, count, scales)) {
      sum_products_of_pixels<Bytes, true>(p, z, channels, count, scales, out);
    }
    finish_all(count, scales, out);
  }
  template <class A>
  static DENSESIAM_HD void finish_all(int count, const TileScales<A>& scales, TileLosses<A>& out) {
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      Loss::finish(out.loss[i], out.first[i], out.second[i], scales.p[i], scales.z[i], out.loss[i],
                   out.first[i], out.second[i]);
    }
  }
  template <class A>
  static DENSESIAM_HD A gradient(A p, A z, A a, A b, A grad) {
    return grad * (b * p - a * z);
  }
};

// Minus the cosine of p and z. Statistics a = 1 / (|p| |z|) with both norms clamped, and
// b = cos / |p|^2, or 0 where |p| is below the clamp. The sums are of scaled vectors.
struct Cosine : LossOfProducts<Cosine> {
  template <class A>
  static DENSESIAM_HD void finish(A pp, A zz, A pz, A p_scale, A z_scale, A& loss, A& a, A& b) {
    // The square of the least norm, 0 of a scaled one; NaN passes every comparison.
    const A p_least = A(1e-16) * p_scale * p_scale, z_least = A(1e-16) * z_scale * z_scale;
    a = A(1) / (std::sqrt(pp < p_least ? p_least : pp) * std::sqrt(zz < z_least ? z_least : zz));
    const A cosine = pz * a;
    a = a * p_scale * z_scale;
    b = pp < p_least ? A(0) : cosine / pp * p_scale * p_scale;
    loss = -cosine;
  }
};

// Cross-entropy of softmax p toward softmax z. With p' = p - max p and z' = z - max z:
// loss = log sum exp p' - sum exp(z') p' / sum exp z'. Statistics log sum exp p and log sum exp z:
// dp = g (softmax p - softmax z).
struct CrossEntropy {
  template <int Bytes, class A>
  static DENSESIAM_HD void tile(Tile<const A> p, Tile<const A> z, std::int64_t channels, int count,
                                TileLosses<A>& out) {
    A p_max[kTile], z_max[kTile], p_sum[kTile], z_sum[kTile], product[kTile];
    greatest_of_rows(p, channels, count, p_max);
    greatest_of_rows(z, channels, count, z_max);
    for (int i = 0; i < count; ++i) p_sum[i] = z_sum[i] = product[i] = A(0);
    for (std::int64_t c = 0; c < channels; ++c) {
      const A* __restrict a = p.row(c);
      const A* __restrict b = z.row(c);
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const A shifted = a[i] - p_max[i];
        const A mass = exp_of_negative(b[i] - z_max[i]);
        p_sum[i] += exp_of_negative(shifted);
        z_sum[i] += mass;
        product[i] += mass * shifted;
      }
    }
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const A p_log = log_of_normal(p_sum[i]);
      out.loss[i] = p_log - product[i] / z_sum[i];
      out.first[i] = p_max[i] + p_log;
      out.second[i] = z_max[i] + log_of_normal(z_sum[i]);
    }
  }
  template <class A>
  static DENSESIAM_HD A gradient(A p, A z, A p_log_sum, A z_log_sum, A grad) {
    return grad * (exp_of_negative(p - p_log_sum) - exp_of_negative(z - z_log_sum));
  }
};

// Calls body(Type<Loss>{}) with the loss of that name.
template <class Body>
auto dispatch_kind(const char* op, const std::string& kind, const Body& body) {
  check(kind == "cosine" || kind == "cross_entropy", op,
        ": kind must be one of cosine, cross_entropy, got '", kind, "'");
  return kind == "cosine" ? body(Type<Cosine>{}) : body(Type<CrossEntropy>{});
}

}  // namespace densesiam
