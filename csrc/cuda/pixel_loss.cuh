// Any loss between the channels of p and z at every pixel, and its gradient: losses.cuh has them.
//
// Forward reads p and z once (softmax online) and writes two numbers per pixel, and the loss or one
// partial sum per block; the mean weighs those by image and adds them up in a fixed order. Backward
// reads p, z and the statistics and writes dp. Images of weight 0 are not read. Threads: see
// pixels.cuh.
//
// Mandatory bytes: forward 2 B C P elements, backward 3 B C P: memory bound.
#pragma once

#include "device/pixels.cuh"
#include "losses.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

// Where the results of a forward go: every pixel's loss, times its image's weight, or one sum a
// block, without weights (the other is null).
template <class A>
struct LossOutput {
  A* losses;      // [B, P] or null
  A* parts;       // [blocks] or null
  A* statistics;  // [B, 2, P]
};

// The scales that vectors of these sums need to be squared; whether any is not 1.
template <class Loss, int R, class A>
DENSESIAM_HD bool scales_of(const Loss (&sums)[R], A (&p_scale)[R], A (&z_scale)[R]) {
  bool large = false;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    p_scale[r] = z_scale[r] = A(1);
    if constexpr (Loss::kOfProducts) {
      p_scale[r] = scale_of(sums[r].pp);
      z_scale[r] = scale_of(sums[r].zz);
    }
    large |= p_scale[r] != A(1) || z_scale[r] != A(1);
  }
  return large;
}

template <class Loss, class A>
DENSESIAM_HD PixelLoss<A> finished(const Loss& sums, A p_scale, A z_scale) {
  if constexpr (Loss::kOfProducts) {
    return sums.finish(p_scale, z_scale);
  } else {
    return sums.finish();
  }
}

template <class Loss, class P, class Z>
__global__ void __launch_bounds__(kThreads, kBlocks<typename P::A>)
    pixel_loss_planar(P p,                                  // [B, C, P]
                      Z z,                                  // [B, C, P]
                      ImageWeights<typename P::A> weights,  // [B]
                      PixelShape shape, PlanarSplit split, LossOutput<typename P::A> out) {
  using A = typename P::A;
  constexpr int N = P::N;
  const PlanarPart<N> part(shape, split);
  const unsigned slices = split.slices;
  const A w = weights.factor(part.b, out.losses == nullptr);
  Loss sums[N];
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] = Loss::identity();
  if (part.inside && w != A(0)) {
    const auto p_reader = p.at(shape, part.b, part.pixel);
    const auto z_reader = z.at(shape, part.b, part.pixel);
    for_each_chunk<kChunk<A>>(shape.channels, part.slice, slices, [&](auto chunk, unsigned c) {
      constexpr int U = decltype(chunk)::value;
      A p_values[U][N], z_values[U][N];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        p_reader.read(c + u, p_values[u]);
        z_reader.read(c + u, z_values[u]);
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        A p_column[U], z_column[U];
#pragma unroll
        for (int u = 0; u < U; ++u) p_column[u] = p_values[u][n], z_column[u] = z_values[u][n];
        sums[n].add(p_column, z_column);
      }
    });
  }
  merge_slices(sums, part.slice, slices);

  A total = A(0);
  if (part.inside && part.slice == 0) {
    A loss[N], first[N], second[N], p_scale[N], z_scale[N];
    if (scales_of(sums, p_scale, z_scale)) {  // seldom: this thread alone reads all channels again
#pragma unroll
      for (int n = 0; n < N; ++n) sums[n] = Loss::identity();
#pragma unroll 1  // its registers would be those of the kernel
      for (unsigned c = 0; c < shape.channels; ++c) {
        A p_values[N], z_values[N];
        p.at(shape, part.b, part.pixel).read(c, p_values);
        z.at(shape, part.b, part.pixel).read(c, z_values);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          sums[n].add({p_values[n] * p_scale[n]}, {z_values[n] * z_scale[n]});
        }
      }
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const PixelLoss<A> result =
          w != A(0) ? finished(sums[n], p_scale[n], z_scale[n]) : PixelLoss<A>{A(0), A(0), A(0)};
      loss[n] = w * result.loss;
      first[n] = result.first;
      second[n] = result.second;
      total += loss[n];
    }
    A* statistics = out.statistics + std::int64_t(part.b) * 2 * shape.pixels + part.pixel;
    store_row(statistics, first);
    store_row(statistics + shape.pixels, second);
    if (out.losses != nullptr) {
      store_row(out.losses + std::int64_t(part.b) * shape.pixels + part.pixel, loss);
    }
  }
  if (out.parts != nullptr) {
    total = block_sum(total);
    if (threadIdx.x == 0) store(out.parts + blockIdx.x, total);
  }
}

// for_each_packs of two maps: body(number, first, step, p_values, z_values).
template <class P, class Z, class Body>
__device__ __forceinline__ void for_each_pair_of_packs(P p, Z z, const PixelShape& shape,
                                                       const PixelsPart& part, const Body& body) {
  using A = typename P::A;
  constexpr int N = P::N;
  const auto p_reader = reader_of(p, shape, part);
  const auto z_reader = reader_of(z, shape, part);
  for_each_packs<P>(shape.channels / N, part, [&](auto number, unsigned first, auto step) {
    constexpr int U = decltype(number)::value;
    A p_values[U * N], z_values[U * N];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      p_reader.read((first + u * step) * N, p_values + u * N);
      z_reader.read((first + u * step) * N, z_values + u * N);
    }
    body(number, first, step, p_values, z_values);
  });
}

template <class Loss, class P, class Z>
__global__ void __launch_bounds__(kThreads, kResident<P, 6>)
    pixel_loss_pixels(P p,                                  // [B, C, P]
                      Z z,                                  // [B, C, P]
                      ImageWeights<typename P::A> weights,  // [B]
                      PixelShape shape, unsigned bits, LossOutput<typename P::A> out) {
  using A = typename P::A;
  const PixelsPart part(shape, bits);
  const A w = weights.factor(part.b, out.losses == nullptr);
  if constexpr (P::kStaged) {
    if (w != A(0)) p.stage(shape, part), z.stage(shape, part);
    __syncthreads();
  }
  Loss sums[1] = {Loss::identity()};
  if (part.inside && w != A(0)) {
    for_each_pair_of_packs(p, z, shape, part,
                           [&](auto, unsigned, auto, const auto& p_values, const auto& z_values) {
                             sums[0].add(p_values, z_values);
                           });
  }
  sums[0].merge(Lanes{part.lanes});

  A total = A(0), p_scale[1], z_scale[1];
  if (part.inside && part.lane == 0) {
    if (scales_of(sums, p_scale, z_scale)) {  // seldom: this thread alone reads all channels again
      constexpr int N = P::N;
      sums[0] = Loss::identity();
#pragma unroll 1  // its registers would be those of the kernel
      for (unsigned c = 0; c < shape.channels; c += N) {
        A p_values[N], z_values[N];
        reader_of(p, shape, part).read(c, p_values);
        reader_of(z, shape, part).read(c, z_values);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          p_values[n] *= p_scale[0];
          z_values[n] *= z_scale[0];
        }
        sums[0].add(p_values, z_values);
      }
    }
    const PixelLoss<A> result =
        w != A(0) ? finished(sums[0], p_scale[0], z_scale[0]) : PixelLoss<A>{A(0), A(0), A(0)};
    total = w * result.loss;
    A* statistics = out.statistics + std::int64_t(part.b) * 2 * shape.pixels + part.pixel;
    store(statistics, result.first);
    store(statistics + shape.pixels, result.second);
    if (out.losses != nullptr) {
      store(out.losses + std::int64_t(part.b) * shape.pixels + part.pixel, total);
    }
  }
  if (out.parts != nullptr) {
    total = block_sum(total);
    if (threadIdx.x == 0) store(out.parts + blockIdx.x, total);
  }
}

template <class Loss, class P, class Z>
__global__ void __launch_bounds__(kThreads, kBlocks<typename P::A>)
    pixel_loss_backward_planar(Upstream<typename P::A> upstream,  // [] if mean, else [B, P]
                               P p,                               // [B, C, P]
                               Z z,                               // [B, C, P]
                               const typename P::A* __restrict__ statistics,  // [B, 2, P]
                               PixelShape shape, PlanarSplit split,
                               typename P::T* __restrict__ out  // [B, C, P]
    ) {
  using A = typename P::A;
  constexpr int N = P::N;
  const PlanarPart<N> part(shape, split);
  const auto share = upstream.share(shape, part.b);
  const unsigned slices = split.slices;
  if (!part.inside) return;
  A grad[N] = {}, first[N] = {}, second[N] = {};
  if (share.counts) {
    const A* kept = statistics + std::int64_t(part.b) * 2 * shape.pixels + part.pixel;
    upstream.read(shape, part.b, part.pixel, share.factor, grad);
    load_row(kept, first);
    load_row(kept + shape.pixels, second);
  }
  const auto p_reader = p.at(shape, part.b, part.pixel);
  const auto z_reader = z.at(shape, part.b, part.pixel);
  typename P::T* target = out + std::int64_t(part.b) * shape.channels * shape.pixels + part.pixel;
  for_each_chunk<kChunk<A>>(shape.channels, part.slice, slices, [&](auto chunk, unsigned c) {
    constexpr int U = decltype(chunk)::value;
    A p_values[U][N] = {}, z_values[U][N] = {};
    if (share.counts) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        p_reader.read(c + u, p_values[u]);
        z_reader.read(c + u, z_values[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      A result[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const A value =
            Loss::gradient(p_values[u][n], z_values[u][n], first[n], second[n], grad[n]);
        result[n] = share.counts ? value : A(0);
      }
      store_rounded(target + (c + u) * shape.pixels, result);
    }
  });
}

template <class Loss, class P, class Z>
__global__ void __launch_bounds__(kThreads, kResident<P, 5>)
    pixel_loss_backward_pixels(Upstream<typename P::A> upstream,  // [] if mean, else [B, P]
                               P p,                               // [B, C, P]
                               Z z,                               // [B, C, P]
                               const typename P::A* __restrict__ statistics,  // [B, 2, P]
                               PixelShape shape, unsigned bits,
                               typename P::T* __restrict__ out  // [B, C, P]
    ) {
  using A = typename P::A;
  constexpr int N = P::N;
  const PixelsPart part(shape, bits);
  const auto share = upstream.share(shape, part.b);
  if constexpr (P::kStaged) {
    if (share.counts) p.stage(shape, part), z.stage(shape, part);
    __syncthreads();
  }
  const GradientPlace<P> place(p, shape, part, out);
  if (part.inside && !share.counts) {
    place.clear(shape, part);
  } else if (part.inside) {
    A grad[1];
    upstream.read(shape, part.b, part.pixel, share.factor, grad);
    const A* kept = statistics + std::int64_t(part.b) * 2 * shape.pixels + part.pixel;
    const A first = load(kept), second = load(kept + shape.pixels);
    for_each_pair_of_packs(
        p, z, shape, part,
        [&](auto number, unsigned pack, auto step, const auto& p_values, const auto& z_values) {
          constexpr int U = decltype(number)::value;
          A result[U * N];
#pragma unroll
          for (int i = 0; i < U * N; ++i) {
            result[i] = Loss::gradient(p_values[i], z_values[i], first, second, grad[0]);
          }
#pragma unroll
          for (int u = 0; u < U; ++u) place.put((pack + u * step) * N, result + u * N);
        });
  }
  if constexpr (P::kStaged) {
    __syncthreads();
    p.unstage(shape, part, out);
  }
}

template <class Loss, class P, class Z, class A, class Stream>
void launch_pixel_loss(P p, Z z, const ImageWeights<A>& weights, const PixelShape& shape,
                       const Sharing<P>& sharing, const LossOutput<A>& out, Stream stream) {
  const auto run = [&](auto kernel) {
    launch(kernel, dim3(sharing.blocks), dim3(kThreads), sharing.bytes, stream, p, z, weights,
           shape, sharing.share, out);
  };
  if constexpr (P::kPixelsLayout) {
    run(pixel_loss_pixels<Loss, P, Z>);
  } else {
    run(pixel_loss_planar<Loss, P, Z>);
  }
}

template <class Loss, class P, class Z, class A, class Stream>
void launch_pixel_loss_backward(const Upstream<A>& upstream, P p, Z z, const A* statistics,
                                const PixelShape& shape, typename P::T* out, Stream stream) {
  const Sharing<P> sharing(shape, 2);
  const auto run = [&](auto kernel) {
    launch(kernel, dim3(sharing.blocks), dim3(kThreads), sharing.bytes, stream, upstream, p, z,
           statistics, shape, sharing.share, out);
  };
  if constexpr (P::kPixelsLayout) {
    run(pixel_loss_backward_pixels<Loss, P, Z>);
  } else {
    run(pixel_loss_backward_planar<Loss, P, Z>);
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
