// pseudo_label_loss under the CUDA key: checks, allocation and launches. The kernels are in
// pseudo_label_loss.cuh.
#include "confusion_matrix.cuh"
#include "pseudo_label_loss.cuh"
#include "support/pixelwise.h"

namespace densesiam {
namespace {

// Weighs the losses by the classes of the labels: by counts that are given, by those that the label
// kernel has found, or, of many classes, by those that are found here.
template <class A>
void weigh(const Tensor& labels, const LossSplit& split, const ClassCounts<A>& counts,
           std::int64_t* counted, A* weights, A* losses, A* parts, cudaStream_t stream) {
  const auto run = [&](auto kernel, std::size_t bytes) {
    launch(kernel, dim3(split.blocks()), dim3(kThreads), bytes, stream, data<std::int32_t>(labels),
           counts, weights, split, losses, parts);
  };
  if (counts.classes <= kMostClasses) {
    run(weigh_losses<true, A>, counts.classes * sizeof(A));
    return;
  }
  if (counted != nullptr) {
    launch_count_pairs({nullptr, IntegerType::none, 1, 1},
                       {data<std::int32_t>(labels), IntegerType::int32, counts.classes, -1},
                       labels.numel(), counted, stream);
  }
  launch(weigh_classes<A>, dim3(1), dim3(kThreads), 0, stream, counts, weights);
  run(weigh_losses<false, A>, 0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pseudo_label_loss(
    const Tensor& logits, std::optional<Tensor> targets, std::string rebalance,
    std::optional<Tensor> counts, std::string reduction, std::optional<Tensor> weight) {
  const char* op = "pseudo_label_loss";
  check_labelled(op, logits, targets, counts);
  check(rebalance == "none" || rebalance == "frequency" || rebalance == "inverse", op,
        ": rebalance must be one of none, frequency, inverse, got '", rebalance, "'");
  const ScalarType dtype = accumulate_type(logits.scalar_type());
  const bool mean = is_mean(op, reduction), rebalanced = rebalance != "none";
  const std::optional<Tensor> images = checked_weight(op, weight, logits);
  const OnDevice device(logits);
  const Layout layout = layout_of(logits);
  const Tensor source = in_layout(logits, layout);
  const Tensor target = targets ? in_layout(*targets, layout) : source;
  const std::optional<Tensor> given =
      counts ? std::optional(in_layout(*counts, Layout::planar)) : std::nullopt;
  const std::vector<std::int64_t> sizes{logits.size(0), logits.size(2)};
  const Tensor log_sum = torch::stable::new_empty(logits, sizes, dtype);
  const Tensor labels = torch::stable::new_empty(logits, sizes, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(logits, {logits.size(1)}, dtype);
  // The losses are kept where they are the result or have yet to be weighted by class.
  const Tensor losses =
      !mean || rebalanced ? torch::stable::new_empty(logits, sizes, dtype) : log_sum;
  Tensor result = mean ? empty_or_zeros(logits, {}, dtype) : losses;
  if (logits.numel() == 0) {
    torch::stable::fill_(weights, rebalanced ? 0.0 : 1.0);
    return {result, log_sum, labels, weights};
  }
  const PixelShape shape = pixel_shape(op, logits);
  const bool channels_last = reads_pixels(layout, logits);
  const cudaStream_t stream = device.stream();
  Tensor memory;
  if (rebalanced && !given) {
    memory = torch::stable::new_zeros(logits, {logits.size(1)}, ScalarType::Long);
  }
  dispatch_float(op, logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    LabelOutput<A> out{!mean || rebalanced ? mutable_data<A>(losses) : nullptr,
                       nullptr,
                       mutable_data<A>(log_sum),
                       mutable_data<std::int32_t>(labels),
                       rebalanced ? nullptr : mutable_data<A>(weights),
                       nullptr,
                       mean};
    std::int64_t* const counted =
        rebalanced && !given ? mutable_data<std::int64_t>(memory) : nullptr;
    if (logits.size(1) <= kMostClasses) {
      out.counts = reinterpret_cast<unsigned long long*>(counted);
    }
    const Access access = access_of<T>(channels_last, logits, {&source, &target});
    Tensor parts;
    unsigned count = 0;
    with_source(data<T>(source), access, shape, [&](auto x) {
      const auto t = second_source(x, targets ? data<T>(target) : nullptr);
      const Sharing<decltype(x)> sharing(shape, targets ? 2 : 1);
      if (mean && !rebalanced) {
        count = sharing.blocks;
        parts = torch::stable::new_empty(logits, {std::int64_t(count)}, dtype);
        out.parts = mutable_data<A>(parts);
      }
      launch_label_pixels(x, t, image_weights<A>(images), shape, sharing, out, stream);
    });
    if (rebalanced) {
      const LossSplit split(shape.batch, shape.pixels, mean && images);
      if (mean) {
        count = split.count();
        parts = torch::stable::new_empty(logits, {std::int64_t(count)}, dtype);
      }
      weigh<A>(labels, split,
               {counted, given ? data<A>(*given) : nullptr, shape.channels, rebalance == "inverse"},
               counted, mutable_data<A>(weights), mutable_data<A>(losses),
               mean ? mutable_data<A>(parts) : nullptr, stream);
    }
    if (mean) {
      launch_mean<A>(data<A>(parts), count, images, shape, mutable_data<A>(result), stream);
    }
  });
  check_launch(op);
  return {result, log_sum, labels, weights};
}

Tensor pseudo_label_loss_backward(const Tensor& grad, const Tensor& logits, std::string reduction,
                                  std::optional<Tensor> weight, const Tensor& log_sum,
                                  const Tensor& labels, const Tensor& class_weights) {
  const char* op = "pseudo_label_loss_backward";
  check_labelled(op, logits, std::nullopt, std::nullopt);
  const bool mean = is_mean(op, reduction);
  const std::optional<Tensor> images = checked_weight(op, weight, logits);
  const OnDevice device(logits);
  const Layout layout = layout_of(logits);
  const Tensor source = in_layout(logits, layout);
  const ScalarType dtype = accumulate_type(logits.scalar_type());
  const Sizes pixels{logits.size(0), logits.size(2)};
  const Tensor upstream = checked_grad(op, grad, mean, pixels, logits);
  const Tensor sums = checked_kept(op, "log_sum", log_sum, dtype, pixels, logits);
  const Tensor chosen = checked_kept(op, "labels", labels, ScalarType::Int, pixels, logits);
  const Tensor weights =
      checked_kept(op, "class_weights", class_weights, dtype, {logits.size(1)}, logits);
  Tensor out = empty_in_layout({logits.size(0), logits.size(1), logits.size(2)}, layout,
                               logits.scalar_type(), logits);
  if (logits.numel() == 0) return out;
  const PixelShape shape = pixel_shape(op, logits);
  const bool channels_last = reads_pixels(layout, logits);
  dispatch_float(op, logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    const auto gradient = upstream_of<A>(upstream, mean, images, shape);
    const Tensor& per_pixel = mean ? sums : upstream;
    const Access access =
        access_of<T>(channels_last, logits, {&source, &out, &sums, &chosen, &per_pixel});
    with_source(data<T>(source), access, shape, [&](auto x) {
      launch_label_backward<decltype(x), A>(
          gradient, x, {data<A>(sums), data<std::int32_t>(chosen), data<A>(weights)}, shape,
          mutable_data<T>(out), device.stream());
    });
  });
  check_launch(op);
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("pseudo_label_loss", TORCH_BOX(&densesiam::pseudo_label_loss));
  m.impl("pseudo_label_loss_backward", TORCH_BOX(&densesiam::pseudo_label_loss_backward));
}
