// Weights of the images of a batch, read as the caller has them, and the mean weighted by them.
#pragma once

#include "block.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

enum class WeightType { none, boolean, float16, bfloat16, float32, float64 };

template <class A>
DENSESIAM_HD A larger(A a, A b) {
  return b > a ? b : a;
}

// (B,) weights of the images in any type; 1 each where there are none.
template <class A>
struct ImageWeights {
  const void* values;
  WeightType type;

  DENSESIAM_HD A operator[](unsigned b) const {
    switch (type) {
      case WeightType::boolean:
        return load(static_cast<const std::uint8_t*>(values) + b) != 0 ? A(1) : A(0);
      case WeightType::float16:
        return A(to_float(load(static_cast<const half*>(values) + b)));
      case WeightType::bfloat16:
        return A(to_float(load(static_cast<const bfloat16*>(values) + b)));
      case WeightType::float32:
        return A(load(static_cast<const float*>(values) + b));
      case WeightType::float64:
        return A(load(static_cast<const double*>(values) + b));
      case WeightType::none:
        break;
    }
    return A(1);
  }
  // What a loss of image b is multiplied by where it is found. Of a mean that is 1, or 0 where the
  // image does not count: weighted_mean weighs the sums.
  DENSESIAM_HD A factor(unsigned b, bool mean) const {
    const A weight = (*this)[b];
    return mean && weight != A(0) ? A(1) : weight;
  }
  // The largest magnitude of the weights first, first + step, ...; NaN is passed over.
  DENSESIAM_HD A largest(unsigned first, unsigned step, unsigned batch) const {
    A most = A(0);
#pragma unroll 1
    for (unsigned b = first; b < batch; b += step) most = larger(most, std::abs((*this)[b]));
    return most;
  }
};

constexpr unsigned kImagesAtOnce = 2048;  // whose weights weighted_mean holds in shared memory

// One block: out = sum of w_b part / (pixels x sum of w_b), 0 where nothing counts. Each image has
// as many parts, one image's lie side by side, and those of an image of weight 0 are 0.
template <class A>
__global__ void __launch_bounds__(kThreads)
    weighted_mean(const A* __restrict__ parts,                          // [count]
                  unsigned count, ImageWeights<A> weights,              // [B]
                  unsigned batch, unsigned pixels, A* __restrict__ out  // []
    ) {
  A some[kStrided], sum = A(0), weight = A(0);
  load_strided(parts, 0, count, some);  // under way while weights are found
  bool loaded = true;
  if (weights.type == WeightType::none) {
    sum = array_sum(parts, count, some, loaded, [](A part) { return part; });
    weight = A(batch);
  } else {
    const A mine = threadIdx.x < batch ? weights[threadIdx.x] : A(0);
    const A most = larger(weights.largest(threadIdx.x + kThreads, kThreads, batch), std::abs(mine));
    const A unit = inverse_unit(block_merge(most, [](A a, A b) { return larger(a, b); }));
    const unsigned parts_each = count / batch;
    DENSESIAM_SHARED(A, relative, kImagesAtOnce);
    for (unsigned first = 0; first < batch; first += kImagesAtOnce) {
      const unsigned left = batch - first, images = left < kImagesAtOnce ? left : kImagesAtOnce;
#pragma unroll 1
      for (unsigned b = threadIdx.x; b < images; b += kThreads) {
        relative[b] = in_units(first + b == threadIdx.x ? mine : weights[first + b], unit);
        weight += relative[b];
      }
      __syncthreads();
      // The image of a part: no division for each.
      unsigned image = threadIdx.x / parts_each, place = threadIdx.x % parts_each;
      const unsigned whole = kThreads / parts_each, rest = kThreads % parts_each;
      const A* chunk = parts + first * parts_each;
      sum += array_sum(chunk, images * parts_each, some, loaded, [&](A part) {
        const A weighted = relative[image] * part;
        image += whole, place += rest;
        if (place >= parts_each) ++image, place -= parts_each;
        return weighted;
      });
      loaded = false;
    }
    weight = block_sum(weight);
  }
  const A total = A(pixels) * weight;
  if (threadIdx.x == 0) store(out, total == A(0) ? A(0) : sum / total);
}

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
