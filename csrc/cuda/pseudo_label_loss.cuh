// pseudo_label_loss: cross-entropy of logits toward y = argmax of targets, weighted by class.
//
//   l = v_b w_y (log sum exp x - x_y);  dx_k = g v_b w_y (softmax(x)_k - [k = y])
//   w_c = 1, n_c / N ("frequency") or N / (K' n_c) ("inverse"); 0 where n_c = 0
//   v_b = 1, or the weight of image b
//
// Label kernel: one pass over logits (and targets, where they differ) gives label, log sum exp and
// loss of every pixel, times v_b but in a mean, whose sums are weighed at the end (weights.cuh).
// Images of weight 0 are not read: their pixels' label is kUncounted, which counts in no n_c. With
// rebalancing each block counts its labels and adds them to those of all (integers: in any order);
// a second kernel, of which each block turns the counts into weights, weighs the losses. Of more
// than kMostClasses they are counted and turned by two kernels more. The mean adds up one partial
// sum a block in a fixed order. Threads: see pixels.cuh.
//
// Mandatory bytes: forward B K P elements (2 B K P with targets), backward 2 B K P. One exponential
// an element: memory bound.
#pragma once

#include "device/argmax.cuh"
#include "device/pixels.cuh"
#include "device/softmax.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

constexpr std::int32_t kUncounted = -1;
constexpr std::int64_t kMostClasses = 4096;  // whose counts or weights a block keeps

template <class A>
struct LabelSums {
  LogSumExp<A> logits;
  Greatest<A> target;
  A chosen;  // the logit of that label

  // Of no channels yet, before those from that one on.
  static DENSESIAM_HD LabelSums starting(unsigned first) {
    return {LogSumExp<A>::identity(), Greatest<A>::starting(int(first)), A(0)};
  }
  // N channels more, all above those before, in packs of `width` whose first ones are `step` apart.
  template <int N>
  DENSESIAM_HD void add(const A (&x)[N], const A (&t)[N], unsigned first, int width = N,
                        unsigned step = 0) {
    logits.add(x);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int channel = int(first + n / width * step) + n % width;
      target.offer_next(t[n], channel);
      chosen = target.index == channel ? x[n] : chosen;  // the first one too, whatever its target
    }
  }
  // The same of logits that are the targets: the first that equals the largest. With NaN among them
  // nobody knows; the sum tells.
  template <int N>
  DENSESIAM_HD void add(const A (&x)[N], unsigned first, int width = N, unsigned step = 0) {
    const A most = logits.add(x);
    int channel = int(first);
#pragma unroll
    for (int n = N - 1; n >= 0; --n) {
      channel = x[n] == most ? int(first + n / width * step) + n % width : channel;
    }
    target.offer_next(most, channel);
    chosen = target.value;
  }
  DENSESIAM_HD bool knows_label() const { return logits.sum == logits.sum; }
  DENSESIAM_HD void merge(const LabelSums& other) {
    logits.merge(other.logits);
    chosen = target.offer(other.target.value, other.target.index) ? other.chosen : chosen;
  }
  __device__ __forceinline__ void merge(const Lanes& lanes) {
    logits.merge(lanes);
    lanes.exchange([&](const auto& other) {
      const A x = other(chosen), value = other(target.value);
      chosen = target.offer(value, other(target.index)) ? x : chosen;
    });
  }
  // Shifting by the maximum first keeps what a large log sum exp would round away.
  DENSESIAM_HD A loss(A weight) const {
    return weight == A(0) ? A(0) : weight * (std::log(logits.sum) - (chosen - logits.max));
  }
  DENSESIAM_HD std::int32_t label(A weight) const {
    return weight == A(0) ? kUncounted : std::int32_t(target.index);
  }
};

// Per pixel, (B, P) each; losses or parts may be null. Losses are times their image's weight; those
// of a mean are not yet.
template <class A>
struct LabelOutput {
  A* losses;                   // [B, P] or null
  A* parts;                    // [blocks] or null
  A* log_sum;                  // [B, P]
  std::int32_t* labels;        // [B, P]
  A* class_weights;            // [K], to be filled with ones, or null
  unsigned long long* counts;  // [K], to which labels are added, or null
  bool mean;
};

// Adds the block's labels to `counts`, in the memory that its maps had. `mine` is the same in all
// lanes of a warp; labels below 0 count nowhere.
template <int N>
__device__ __forceinline__ void count_labels(const std::int32_t (&labels)[N], bool mine,
                                             unsigned classes, unsigned long long* counts) {
  DENSESIAM_DYNAMIC_SHARED(unsigned, found);
  __syncthreads();
  for (unsigned c = threadIdx.x; c < classes; c += kThreads) found[c] = 0;
  __syncthreads();
#pragma unroll
  for (int n = 0; mine && n < N; ++n) add_one(found, labels[n]);
  __syncthreads();
  for (unsigned c = threadIdx.x; c < classes; c += kThreads) {
    if (found[c] != 0) atomicAdd(counts + c, static_cast<unsigned long long>(found[c]));
  }
}

// Without rebalancing every class has the weight 1.
template <class A>
__device__ __forceinline__ void fill_class_weights(const LabelOutput<A>& out, unsigned classes) {
  if (out.class_weights == nullptr || blockIdx.x != 0) return;
  for (unsigned c = threadIdx.x; c < classes; c += kThreads) store(out.class_weights + c, A(1));
}

// `targets.base` null: the logits are the targets.
template <class Source>
__global__ void __launch_bounds__(kThreads, kBlocks<typename Source::A>)
    label_pixels_planar(Source logits,                             // [B, K, P]
                        Source targets,                            // [B, K, P] or null
                        ImageWeights<typename Source::A> weights,  // [B]
                        PixelShape shape, PlanarSplit split, LabelOutput<typename Source::A> out) {
  using A = typename Source::A;
  constexpr int N = Source::N;
  const PlanarPart<N> part(shape, split);
  const unsigned slices = split.slices;
  const bool others = targets.base != nullptr;
  fill_class_weights(out, shape.channels);
  LabelSums<A> sums[N];
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] = LabelSums<A>::starting(part.slice * kChunk<A>);
  const A weight = part.inside ? weights.factor(part.b, out.mean) : A(0);
  if (weight != A(0)) {
    const auto x_reader = logits.at(shape, part.b, part.pixel);
    const auto t_reader = targets.at(shape, part.b, part.pixel);
    for_each_chunk<kChunk<A>>(shape.channels, part.slice, slices, [&](auto chunk, unsigned c) {
      constexpr int U = decltype(chunk)::value;
      A x[U][N], t[U][N] = {};
#pragma unroll
      for (int u = 0; u < U; ++u) {
        x_reader.read(c + u, x[u]);
        if (others) t_reader.read(c + u, t[u]);
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        A x_column[U], t_column[U];
#pragma unroll
        for (int u = 0; u < U; ++u) x_column[u] = x[u][n], t_column[u] = t[u][n];
        others ? sums[n].add(x_column, t_column, c) : sums[n].add(x_column, c);
      }
    });
  }
  merge_slices(sums, part.slice, slices);

  A total = A(0);
  std::int32_t labels[N];
#pragma unroll
  for (int n = 0; n < N; ++n) labels[n] = kUncounted;
  if (part.inside && part.slice == 0) {
    const std::int64_t pixel = std::int64_t(part.b) * shape.pixels + part.pixel;
    bool known = true;
#pragma unroll
    for (int n = 0; n < N; ++n) known &= sums[n].knows_label();
    if (!others && !known && weight != A(0)) {  // seldom: this thread alone compares all channels
#pragma unroll
      for (int n = 0; n < N; ++n) sums[n].target = Greatest<A>::starting(0);
#pragma unroll 1  // its registers would be those of the kernel
      for (unsigned c = 0; c < shape.channels; ++c) {
        A x[N];
        logits.at(shape, part.b, part.pixel).read(c, x);
#pragma unroll
        for (int n = 0; n < N; ++n) sums[n].target.offer_next(x[n], int(c));
      }
    }
    A loss[N], log_sum[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      loss[n] = sums[n].loss(weight);
      log_sum[n] = sums[n].logits.value();
      labels[n] = sums[n].label(weight);
      total += loss[n];
    }
    store_row(out.log_sum + pixel, log_sum);
    store_row(out.labels + pixel, labels);
    if (out.losses != nullptr) store_row(out.losses + pixel, loss);
  }
  if (out.counts != nullptr) count_labels(labels, part.slice == 0, shape.channels, out.counts);
  if (out.parts != nullptr) {
    total = block_sum(total);
    if (threadIdx.x == 0) store(out.parts + blockIdx.x, total);
  }
}

template <class Source>
__global__ void __launch_bounds__(kThreads, kResident<Source, 6>)
    label_pixels_pixels(Source logits,                             // [B, K, P]
                        Source targets,                            // [B, K, P] or null
                        ImageWeights<typename Source::A> weights,  // [B]
                        PixelShape shape, unsigned bits, LabelOutput<typename Source::A> out) {
  using A = typename Source::A;
  constexpr int N = Source::N;
  const PixelsPart part(shape, bits);
  const A weight = weights.factor(part.b, out.mean);
  const bool others = targets.base != nullptr;
  fill_class_weights(out, shape.channels);
  if constexpr (Source::kStaged) {
    if (weight != A(0)) {
      logits.stage(shape, part);
      if (others) targets.stage(shape, part);
    }
    __syncthreads();
  }
  LabelSums<A> sums = LabelSums<A>::starting(part.lane * N);
  if (part.inside && weight != A(0)) {
    const auto x_reader = reader_of(logits, shape, part);
    const auto t_reader = reader_of(targets, shape, part);
    for_each_packs<Source>(shape.channels / N, part, [&](auto number, unsigned first, auto step) {
      constexpr int U = decltype(number)::value;
      A x[U * N], t[U * N] = {};
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const unsigned c = (first + u * step) * N;
        x_reader.read(c, x + u * N);
        if (others) t_reader.read(c, t + u * N);
      }
      if (others) {
        sums.add(x, t, first * N, N, step * N);
      } else {
        sums.add(x, first * N, N, step * N);
      }
    });
  }
  sums.merge(Lanes{part.lanes});

  A total = A(0);
  std::int32_t label[1] = {kUncounted};
  if (part.inside && part.lane == 0) {
    const std::int64_t pixel = std::int64_t(part.b) * shape.pixels + part.pixel;
    if (!others && !sums.knows_label() && weight != A(0)) {  // seldom: this thread alone compares
      const auto reader = reader_of(logits, shape, part);
      sums.target = Greatest<A>::starting(0);
#pragma unroll 1  // its registers would be those of the kernel
      for (unsigned c = 0; c < shape.channels; c += N) {
        A x[N];
        reader.read(c, x);
#pragma unroll
        for (int n = 0; n < N; ++n) sums.target.offer_next(x[n], int(c) + n);
      }
    }
    total = sums.loss(weight);
    store(out.log_sum + pixel, sums.logits.value());
    store(out.labels + pixel, label[0] = sums.label(weight));
    if (out.losses != nullptr) store(out.losses + pixel, total);
  }
  if (out.counts != nullptr) count_labels(label, true, shape.channels, out.counts);
  if (out.parts != nullptr) {
    total = block_sum(total);
    if (threadIdx.x == 0) store(out.parts + blockIdx.x, total);
  }
}

// Numbers of pixels of each class: those of this call, or numbers given (the other is null).
template <class A>
struct ClassCounts {
  const std::int64_t* counted;  // [K] or null
  const A* given;               // [K] or null
  unsigned classes;
  bool inverse;

  DENSESIAM_HD double operator[](unsigned c) const {
    return counted != nullptr ? double(load(counted + c)) : double(load(given + c));
  }
  // Hands put(c, w_c) the weight of each class; all threads of a block call it.
  template <class Put>
  __device__ __forceinline__ void weigh(const Put& put) const {
    double pixels = 0, present = 0;
    for (unsigned c = threadIdx.x; c < classes; c += kThreads) {
      pixels += (*this)[c];
      present += (*this)[c] > 0;
    }
    pixels = block_sum(pixels);
    present = block_sum(present);
    for (unsigned c = threadIdx.x; c < classes; c += kThreads) {
      const double n = (*this)[c];
      const double weight = inverse ? quotient(pixels, present * n) : quotient(n, pixels);
      put(c, n > 0 ? A(weight) : A(0));
    }
  }
};

// One block: the weights of many classes.
template <class A>
__global__ void __launch_bounds__(kThreads)
    weigh_classes(ClassCounts<A> counts, A* __restrict__ weights  // [K]
    ) {
  counts.weigh([&](unsigned c, A weight) { store(weights + c, weight); });
}

// How the losses are cut into groups of threads, four pixels a thread. Each group has pixels of one
// image, so that weighted_mean can weigh what it finds.
struct LossSplit {
  unsigned images;
  std::int64_t pixels;  // an image
  unsigned threads;     // a group: a warp where that suffices, or a block
  unsigned each;        // groups an image

  // Where no image has a weight of its own all are one.
  LossSplit(unsigned batch, unsigned pixels_, bool weighted)
      : images(weighted ? batch : 1),
        pixels(weighted ? pixels_ : std::int64_t(batch) * pixels_),
        threads(pixels <= 4 * kLanes ? kLanes : kThreads),
        each(unsigned(divide_up(pixels, 4 * threads))) {}
  unsigned count() const { return images * each; }
  unsigned blocks() const { return unsigned(divide_up(count(), kThreads / threads)); }
};

// Each loss times its class's weight, in place; one partial sum a group if `parts` is not null.
// Few: every block finds the weights, and the first one writes them; else they are there.
template <bool Few, class A>
__global__ void __launch_bounds__(kThreads)
    weigh_losses(const std::int32_t* __restrict__ labels,         // [images, pixels]
                 ClassCounts<A> counts, A* __restrict__ weights,  // [K]
                 LossSplit split, A* __restrict__ losses,         // [images, pixels]
                 A* __restrict__ parts                            // [images, each] or null
    ) {
  DENSESIAM_DYNAMIC_SHARED(A, found);
  if constexpr (Few) {
    counts.weigh([&](unsigned c, A weight) {
      found[c] = weight;
      if (blockIdx.x == 0) store(weights + c, weight);
    });
    __syncthreads();
  }
  const unsigned in_block = threadIdx.x / split.threads;
  const unsigned group = blockIdx.x * (kThreads / split.threads) + in_block;
  const unsigned image = group / split.each, in_image = group - image * split.each;
  const bool exists = image < split.images;
  const std::int64_t first =
      std::int64_t(in_image) * 4 * split.threads + threadIdx.x - in_block * split.threads;
  A total = A(0);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const std::int64_t pixel = first + k * split.threads;
    if (!exists || pixel >= split.pixels) break;
    const std::int64_t i = image * split.pixels + pixel;
    const std::int32_t label = load(labels + i);
    // Losses of kUncounted are 0 already: any class's weight will do.
    const std::int32_t known = label > 0 ? label : 0;
    const A loss = load(losses + i) * (Few ? found[known] : load(weights + known));
    if (parts == nullptr) store(losses + i, loss);
    total += loss;
  }
  if (parts == nullptr) return;
  if (split.threads == kThreads) {
    total = block_sum(total);
  } else {
    Lanes{kLanes}.sum(total);
  }
  if (exists && threadIdx.x % split.threads == 0) store(parts + group, total);
}

// What the backward kept of a pixel.
template <class A>
struct LabelStatistics {
  const A* log_sum;            // [B, P]
  const std::int32_t* labels;  // [B, P]
  const A* class_weights;      // [K]
};

template <class A>
DENSESIAM_HD A label_gradient(A x, A log_sum, bool chosen, A grad) {
  return grad * (exponential(x - log_sum) - (chosen ? A(1) : A(0)));
}

template <class Source>
__global__ void __launch_bounds__(kThreads, kBlocks<typename Source::A>)
    label_backward_planar(Upstream<typename Source::A> upstream,  // [] if mean, else [B, P]
                          Source logits,                          // [B, K, P]
                          LabelStatistics<typename Source::A> kept, PixelShape shape,
                          PlanarSplit split, typename Source::T* __restrict__ out  // [B, K, P]
    ) {
  using A = typename Source::A;
  constexpr int N = Source::N;
  const PlanarPart<N> part(shape, split);
  const auto share = upstream.share(shape, part.b);
  const unsigned slices = split.slices;
  if (!part.inside) return;
  const std::int64_t pixel = std::int64_t(part.b) * shape.pixels + part.pixel;
  typename Source::T* target =
      out + std::int64_t(part.b) * shape.channels * shape.pixels + part.pixel;
  if (!share.counts) {
    const A zeros[N] = {};
    for (unsigned c = part.slice; c < shape.channels; c += slices) {
      store_rounded(target + c * shape.pixels, zeros);
    }
    return;
  }
  A grad[N], log_sum[N];
  std::int32_t labels[N];
  upstream.read(shape, part.b, part.pixel, share.factor, grad);
  load_row(kept.log_sum + pixel, log_sum);
  load_row(kept.labels + pixel, labels);
#pragma unroll
  for (int n = 0; n < N; ++n) grad[n] *= load(kept.class_weights + labels[n]);
  const auto reader = logits.at(shape, part.b, part.pixel);
  for_each_chunk<kChunk<A>>(shape.channels, part.slice, slices, [&](auto chunk, unsigned c) {
    constexpr int U = decltype(chunk)::value;
    A x[U][N];
#pragma unroll
    for (int u = 0; u < U; ++u) reader.read(c + u, x[u]);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      A result[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        result[n] = label_gradient(x[u][n], log_sum[n], int(c) + u == labels[n], grad[n]);
      }
      store_rounded(target + (c + u) * shape.pixels, result);
    }
  });
}

template <class Source>
__global__ void __launch_bounds__(kThreads, kResident<Source, 5>)
    label_backward_pixels(Upstream<typename Source::A> upstream,  // [] if mean, else [B, P]
                          Source logits,                          // [B, K, P]
                          LabelStatistics<typename Source::A> kept, PixelShape shape, unsigned bits,
                          typename Source::T* __restrict__ out  // [B, K, P]
    ) {
  using A = typename Source::A;
  constexpr int N = Source::N;
  const PixelsPart part(shape, bits);
  const auto share = upstream.share(shape, part.b);
  if constexpr (Source::kStaged) {
    if (share.counts) logits.stage(shape, part);
    __syncthreads();
  }
  const GradientPlace<Source> place(logits, shape, part, out);
  if (part.inside && !share.counts) {
    place.clear(shape, part);
  } else if (part.inside) {
    const std::int64_t pixel = std::int64_t(part.b) * shape.pixels + part.pixel;
    const int label = load(kept.labels + pixel);
    const A log_sum = load(kept.log_sum + pixel);
    A grad[1];
    upstream.read(shape, part.b, part.pixel, share.factor, grad);
    grad[0] *= load(kept.class_weights + label);
    const auto reader = reader_of(logits, shape, part);
    for_each_packs<Source>(shape.channels / N, part, [&](auto number, unsigned first, auto step) {
      constexpr int U = decltype(number)::value;
      A x[U * N], result[U * N];
#pragma unroll
      for (int u = 0; u < U; ++u) reader.read((first + u * step) * N, x + u * N);
#pragma unroll
      for (int i = 0; i < U * N; ++i) {
        const int channel = int((first + i / N * step) * N) + i % N;
        result[i] = label_gradient(x[i], log_sum, channel == label, grad[0]);
      }
#pragma unroll
      for (int u = 0; u < U; ++u) place.put((first + u * step) * N, result + u * N);
    });
  }
  if constexpr (Source::kStaged) {
    __syncthreads();
    logits.unstage(shape, part, out);
  }
}

template <class Source, class A, class Stream>
void launch_label_pixels(Source logits, Source targets, const ImageWeights<A>& weights,
                         const PixelShape& shape, const Sharing<Source>& sharing,
                         const LabelOutput<A>& out, Stream stream) {
  const auto run = [&](auto kernel) {
    const std::size_t counts = out.counts != nullptr ? shape.channels * sizeof(unsigned) : 0;
    const std::size_t bytes = counts > sharing.bytes ? counts : sharing.bytes;
    launch(kernel, dim3(sharing.blocks), dim3(kThreads), bytes, stream, logits, targets, weights,
           shape, sharing.share, out);
  };
  if constexpr (Source::kPixelsLayout) {
    run(label_pixels_pixels<Source>);
  } else {
    run(label_pixels_planar<Source>);
  }
}

template <class Source, class A, class Stream>
void launch_label_backward(const Upstream<A>& upstream, Source logits,
                           const LabelStatistics<A>& kept, const PixelShape& shape,
                           typename Source::T* out, Stream stream) {
  const Sharing<Source> sharing(shape, 1);
  const auto run = [&](auto kernel) {
    launch(kernel, dim3(sharing.blocks), dim3(kThreads), sharing.bytes, stream, upstream, logits,
           kept, shape, sharing.share, out);
  };
  if constexpr (Source::kPixelsLayout) {
    run(label_backward_pixels<Source>);
  } else {
    run(label_backward_planar<Source>);
  }
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
