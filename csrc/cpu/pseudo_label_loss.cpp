// pseudo_label_loss on the CPU: labels, log-sums and losses, weighted by image, in one pass over
// the maps; the class weights, which need every label first, in a second over the pixels alone.
// Images of weight 0 are not read: kUncounted is the label of their pixels.
#include <numeric>
#include <optional>
#include <vector>

#include "pixel_loss.h"
#include "support/simd.h"
#include "support/softmax.h"

namespace densesiam {
namespace {

constexpr std::int32_t kUncounted = -1;

enum class Rebalance { none, frequency, inverse };

Rebalance rebalance_of(const std::string& name) {
  check(name == "none" || name == "frequency" || name == "inverse",
        "pseudo_label_loss: rebalance must be one of none, frequency, inverse, got '", name, "'");
  return name == "none"        ? Rebalance::none
         : name == "frequency" ? Rebalance::frequency
                               : Rebalance::inverse;
}

// Label, log sum exp and cross-entropy of each pixel, the last times its image's weight.
template <class T>
void label_pixels(const T* logits,                                            // [B, K, P]
                  const T* targets,                                           // [B, K, P] or null
                  const Weights<Accumulate<T>>& weights,                      // [B]
                  Layout layout, const Tiling& tiling, std::int32_t* labels,  // [B, P]
                  Accumulate<T>* log_sums,                                    // [B, P]
                  Accumulate<T>* losses                                       // [B, P]
) {
  using A = Accumulate<T>;
  const std::int64_t K = tiling.channels, P = tiling.pixels;
  parallel_blocks(tiling.tiles(), K * kTile, [&](std::int64_t begin, std::int64_t end) {
    Scratch<A> scratch(K * kTileStride), target_scratch(targets ? K * kTileStride : 0);
    A greatest[kTile], sum[kTile];
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiling.image(tile), start = tiling.start(tile);
      const int count = tiling.count(tile);
      std::int32_t* label = labels + image * P + start;
      A* log_sum = log_sums + image * P + start;
      A* loss = losses + image * P + start;
      const A weight = weights[image];
      if (weight == A(0)) {
        std::fill_n(label, count, kUncounted);
        std::fill_n(log_sum, count, A(0));
        std::fill_n(loss, count, A(0));
        continue;
      }
      vectorised([&](auto width) DENSESIAM_INLINE {
        const auto load = [&](const T* map, A* memory) DENSESIAM_INLINE {
          return load_tile<width()>(map + image * K * P, K, P, layout, start, count, memory);
        };
        const Tile<const A> x = load(logits, scratch.data());
        if (targets) {
          argmax_of_rows<A>(load(targets, target_scratch.data()), K, count, greatest, label);
          greatest_of_rows(x, K, count, greatest);
        } else {
          argmax_of_rows(x, K, count, greatest, label);
        }
        const std::int64_t next = tile + 1;
        const bool fetches = next < end && weights[tiling.image(next)] != A(0);
        sum_of_exponentials(x, K, count, greatest, sum, [&](std::int64_t part) DENSESIAM_INLINE {
          if (!fetches) return;
          for (const T* map : {logits, targets}) {
            if (map) {
              fetch_part(map + tiling.image(next) * K * P, K, P, layout, tiling.start(next),
                         tiling.count(next), part);
            }
          }
        });
#pragma omp simd
        for (int i = 0; i < count; ++i) {
          const A log = log_of_normal(sum[i]);
          log_sum[i] = greatest[i] + log;
          loss[i] = log;  // the loss of the greatest logit
        }
        if (targets) {
          for (int i = 0; i < count; ++i) loss[i] -= x.row(label[i])[i] - greatest[i];
        }
        if (weight != A(1)) {
#pragma omp simd
          for (int i = 0; i < count; ++i) loss[i] *= weight;
        }
      });
    }
  });
}

// How many pixels have each label. Integers: any order of summation gives the same.
std::vector<std::int64_t> count_labels(const std::int32_t* labels,  // [pixels]
                                       std::int64_t pixels, std::int64_t classes) {
  std::vector<std::int64_t> counts(classes);
  std::mutex mutex;
  parallel_blocks(pixels, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> own(classes);
    for (std::int64_t i = begin; i < end; ++i) {
      if (labels[i] != kUncounted) ++own[labels[i]];
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::int64_t k = 0; k < classes; ++k) counts[k] += own[k];
  });
  return counts;
}

// A class of count 0 has weight 0.
template <class A, class Count>
void weigh_classes(Rebalance rebalance, const Count* counts,  // [K]
                   std::int64_t classes, A* weights           // [K]
) {
  double sum = 0;
  std::int64_t present = 0;
  for (std::int64_t k = 0; k < classes; ++k) {
    sum += double(counts[k]);
    present += counts[k] > 0;
  }
  for (std::int64_t k = 0; k < classes; ++k) {
    const double n = double(counts[k]);
    weights[k] = A(!(n > 0)                            ? 0
                   : rebalance == Rebalance::frequency ? n / sum
                                                       : sum / (double(present) * n));
  }
}

// Multiplies each loss by its class's weight; returns their sum.
template <class A>
double weigh_losses(const std::int32_t* labels,  // [pixels]
                    const A* weights,            // [K]
                    A* losses,                   // [pixels]
                    std::int64_t pixels) {
  constexpr std::int64_t kBlock = 4096;
  std::vector<double> partial(ceil_divide(pixels, kBlock));
  parallel_blocks(std::int64_t(partial.size()), kBlock, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t stop = std::min(pixels, (block + 1) * kBlock);
      for (std::int64_t i = block * kBlock; i < stop; ++i) {
        if (labels[i] != kUncounted) losses[i] *= weights[labels[i]];
      }
      partial[block] = std::accumulate(losses + block * kBlock, losses + stop, 0.0);
    }
  });
  return std::accumulate(partial.begin(), partial.end(), 0.0);
}

// grad: one number for "mean", one a pixel for "none".
template <class T>
void backward(const Accumulate<T>* grad,                   // [] if mean, else [B, P]
              bool mean, const T* logits,                  // [B, K, P]
              const Accumulate<T>* log_sums,               // [B, P]
              const std::int32_t* labels,                  // [B, P]
              const Accumulate<T>* class_weights,          // [K]
              const Weights<Accumulate<T>>& weights,       // [B]
              Layout layout, const Tiling& tiling, T* out  // [B, K, P]
) {
  using A = Accumulate<T>;
  const std::int64_t K = tiling.channels, P = tiling.pixels;
  const double total = weights.total(P);
  const A mean_grad = mean && total != 0 ? A(*grad / total) : A(0);
  const std::int64_t cost = K * std::min<std::int64_t>(P, tiling.length);
  parallel_blocks(tiling.tiles(), cost, [&](std::int64_t begin, std::int64_t end) {
    A scale[kGradientTile];
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiling.image(tile), start = tiling.start(tile);
      const int count = tiling.count(tile);
      const std::int32_t* __restrict label = labels + image * P + start;
      const A* __restrict log_sum = log_sums + image * P + start;
      const T* source = logits + image * K * P;
      T* result = out + image * K * P;
      const A weight = weights[image];
      if (weight == A(0)) {
        zero_tile(result, K, P, layout, start, count);
        continue;
      }
      for (int i = 0; i < count; ++i) {
        scale[i] =
            weight * class_weights[label[i]] * (mean ? mean_grad : grad[image * P + start + i]);
      }
      vectorised([&](auto width) DENSESIAM_INLINE {
        const auto gradient = [&](T logit, std::int32_t k, int i) DENSESIAM_INLINE {
          const A probability = exp_of_negative(A(to_float(logit)) - log_sum[i]);
          return from_float<T>(scale[i] * (probability - (k == label[i] ? A(1) : A(0))));
        };
        if (layout == Layout::planar) {
          for (std::int64_t k = 0; k < K; ++k) {
            const T* __restrict from = source + k * P + start;
            T* __restrict to = result + k * P + start;
#pragma omp simd
            for (int i = 0; i < count; ++i) to[i] = gradient(from[i], std::int32_t(k), i);
          }
          return;
        }
        for (int i = 0; i < count; ++i) {
          const T* __restrict from = source + (start + i) * K;
          T* __restrict to = result + (start + i) * K;
          for_groups<width() / int(sizeof(A))>(
              K, [&](std::int64_t first, auto length) DENSESIAM_INLINE {
#pragma omp simd
                for (int k = 0; k < length(); ++k) {
                  to[first + k] = gradient(from[first + k], std::int32_t(first + k), i);
                }
              });
        }
      });
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pseudo_label_loss(
    const Tensor& logits, std::optional<Tensor> targets, std::string rebalance,
    std::optional<Tensor> counts, std::string reduction, std::optional<Tensor> weight) {
  const char* op = "pseudo_label_loss";
  check_labelled(op, logits, targets, counts);
  const Tiling tiling{logits.size(0), logits.size(1), logits.size(2)};
  const Rebalance balance = rebalance_of(rebalance);
  const bool mean = is_mean(op, reduction);
  const ScalarType dtype = accumulate_type(logits.scalar_type());
  const std::optional<Tensor> given_weight = checked_weight(op, weight, logits);
  const Layout layout = layout_of(logits);
  const Tensor source = in_layout(logits, layout);
  const std::optional<Tensor> target_source =
      targets ? std::optional(in_layout(*targets, layout)) : std::nullopt;
  const auto make = [&](const Sizes& sizes, ScalarType type) {
    return empty_in_layout(sizes, Layout::planar, type, logits);
  };
  const Sizes sizes{tiling.batch, tiling.pixels};
  const Tensor log_sum = make(sizes, dtype), labels = make(sizes, ScalarType::Int);
  const Tensor class_weights = make({tiling.channels}, dtype), losses = make(sizes, dtype);
  Tensor result = mean ? make({}, dtype) : losses;

  const std::int64_t pixels = tiling.batch * tiling.pixels;
  dispatch_float(op, logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    const std::int32_t* label = data<std::int32_t>(labels);
    A* class_weight = mutable_data<A>(class_weights);
    A* loss = mutable_data<A>(losses);
    const Weights<A> images(given_weight, tiling.batch, mean);
    label_pixels(data<T>(source), target_source ? data<T>(*target_source) : nullptr, images,
                 kernel_layout(layout, tiling), tiling, mutable_data<std::int32_t>(labels),
                 mutable_data<A>(log_sum), loss);
    if (balance == Rebalance::none) {
      std::fill_n(class_weight, tiling.channels, A(1));
    } else if (counts) {
      const Tensor given = in_layout(*counts, Layout::planar);
      weigh_classes(balance, data<A>(given), tiling.channels, class_weight);
    } else {
      weigh_classes(balance, count_labels(label, pixels, tiling.channels).data(), tiling.channels,
                    class_weight);
    }
    const double sum = weigh_losses(label, class_weight, loss, pixels);
    const double total = images.total(tiling.pixels);
    if (mean) *mutable_data<A>(result) = total == 0 ? A(0) : A(sum / total);
  });
  return {result, log_sum, labels, class_weights};
}

Tensor pseudo_label_loss_backward(const Tensor& grad, const Tensor& logits, std::string reduction,
                                  std::optional<Tensor> weight, const Tensor& log_sum,
                                  const Tensor& labels, const Tensor& class_weights) {
  const char* op = "pseudo_label_loss_backward";
  check_labelled(op, logits, std::nullopt, std::nullopt);
  const bool mean = is_mean(op, reduction);
  const std::optional<Tensor> given_weight = checked_weight(op, weight, logits);
  const Layout layout = layout_of(logits);
  const Tiling tiling = tiling_of(logits, kGradientTile);
  const Tensor source = in_layout(logits, layout);
  const ScalarType dtype = accumulate_type(logits.scalar_type());
  const Sizes pixels{tiling.batch, tiling.pixels};
  const Tensor upstream = checked_grad(op, grad, mean, pixels, logits);
  const Tensor sums = checked_kept(op, "log_sum", log_sum, dtype, pixels, logits);
  const Tensor chosen = checked_kept(op, "labels", labels, ScalarType::Int, pixels, logits);
  const Tensor weights =
      checked_kept(op, "class_weights", class_weights, dtype, {tiling.channels}, logits);
  Tensor out = empty_in_layout({tiling.batch, tiling.channels, tiling.pixels}, layout,
                               logits.scalar_type(), logits);
  dispatch_float(op, logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    backward(data<A>(upstream), mean, data<T>(source), data<A>(sums), data<std::int32_t>(chosen),
             data<A>(weights), {given_weight, tiling.batch, mean}, kernel_layout(layout, tiling),
             tiling, mutable_data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("pseudo_label_loss", TORCH_BOX(&densesiam::pseudo_label_loss));
  m.impl("pseudo_label_loss_backward", TORCH_BOX(&densesiam::pseudo_label_loss_backward));
}
