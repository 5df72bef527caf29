// Host code of any pixel loss, and what overlap_similarity shares of it.
#pragma once

#include "../pixel_loss.cuh"
#include "pixelwise.h"

namespace densesiam {

// A loss of any accumulation type, to be handed on as a value.
template <template <class> class Loss>
struct LossFamily {
  template <class A>
  using of = Loss<A>;
};

// Calls body(LossFamily<Loss>{}) with the loss of that name.
template <class Body>
auto dispatch_kind(const char* op, const std::string& kind, const Body& body) {
  check(kind == "cosine" || kind == "cross_entropy", op,
        ": kind must be one of cosine, cross_entropy, got '", kind, "'");
  return kind == "cosine" ? body(LossFamily<Cosine>{}) : body(LossFamily<CrossEntropy>{});
}

// Runs a forward on two sources; fills the loss (of every pixel, or their mean) and statistics.
template <class Loss, class P, class Z, class A = typename P::A>
void run_pixel_loss(P p, Z z, const std::optional<Tensor>& weight, const PixelShape& shape,
                    bool mean, const Tensor& loss, const Tensor& statistics, cudaStream_t stream) {
  const ImageWeights<A> weights = image_weights<A>(weight);
  const Sharing<P> sharing(shape, 2);
  LossOutput<A> out{mutable_data<A>(loss), nullptr, mutable_data<A>(statistics)};
  if (!mean) {
    launch_pixel_loss<Loss>(p, z, weights, shape, sharing, out, stream);
    return;
  }
  const Tensor parts = torch::stable::new_empty(loss, {std::int64_t(sharing.blocks)});
  out.losses = nullptr;
  out.parts = mutable_data<A>(parts);
  launch_pixel_loss<Loss>(p, z, weights, shape, sharing, out, stream);
  launch_mean<A>(out.parts, sharing.blocks, weight, shape, mutable_data<A>(loss), stream);
}

// The loss of p (B, C, P) to z (B, C, P): its mean (), or that of each pixel (B, P), times the
// image's weight (B,); and the statistics (B, 2, P).
template <template <class> class LossOf>
std::tuple<Tensor, Tensor> pixel_loss(const char* op, const Tensor& p, const Tensor& z,
                                      const std::optional<Tensor>& weight,
                                      const std::string& reduction) {
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const OnDevice device(p);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  Tensor loss = empty_or_zeros(p, mean ? Sizes{} : Sizes{p.size(0), p.size(2)}, dtype);
  Tensor statistics = torch::stable::new_empty(p, {p.size(0), 2, p.size(2)}, dtype);
  if (p.numel() == 0) return {loss, statistics};
  const PixelShape shape = pixel_shape(op, p);
  const bool channels_last = reads_pixels(layout, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using Loss = LossOf<Accumulate<T>>;
    const Access access = access_of<T>(channels_last, p, {&p_source, &z_source});
    with_source(data<T>(p_source), access, shape, [&](auto source) {
      const auto target = second_source(source, data<T>(z_source));
      run_pixel_loss<Loss>(source, target, weights, shape, mean, loss, statistics, device.stream());
    });
  });
  check_launch(op);
  return {loss, statistics};
}

// dp (B, C, P) in p's layout; grad is (), or (B, P), as the loss.
template <template <class> class LossOf>
Tensor pixel_loss_backward(const char* op, const Tensor& grad, const Tensor& p, const Tensor& z,
                           const std::optional<Tensor>& weight, const std::string& reduction,
                           const Tensor& statistics) {
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const OnDevice device(p);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const Tensor upstream = checked_grad(op, grad, mean, {p.size(0), p.size(2)}, p);
  const Tensor kept = checked_kept(op, "statistics", statistics, accumulate_type(p.scalar_type()),
                                   {p.size(0), 2, p.size(2)}, p);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  Tensor out = empty_in_layout({p.size(0), p.size(1), p.size(2)}, layout, p.scalar_type(), p);
  if (p.numel() == 0) return out;
  const PixelShape shape = pixel_shape(op, p);
  const bool channels_last = reads_pixels(layout, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    const auto gradient = upstream_of<A>(upstream, mean, weights, shape);
    // Per-pixel numbers are read in packs where pixels are: a mean's one number need not be.
    const Tensor& per_pixel = mean ? kept : upstream;
    const Access access =
        access_of<T>(channels_last, p, {&p_source, &z_source, &out, &kept, &per_pixel});
    with_source(data<T>(p_source), access, shape, [&](auto source) {
      const auto target = second_source(source, data<T>(z_source));
      launch_pixel_loss_backward<LossOf<A>>(gradient, source, target, data<A>(kept), shape,
                                            mutable_data<T>(out), device.stream());
    });
  });
  check_launch(op);
  return out;
}

// The operators of a loss that is an operation of its own, `Loss<A>::kOp`.
template <template <class> class Loss>
struct PixelLossOperators {
  static std::tuple<Tensor, Tensor> forward(const Tensor& p, const Tensor& z,
                                            std::optional<Tensor> weight, std::string reduction) {
    return pixel_loss<Loss>(Loss<float>::kOp, p, z, weight, reduction);
  }
  static Tensor backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                         std::optional<Tensor> weight, std::string reduction,
                         const Tensor& statistics) {
    return pixel_loss_backward<Loss>(Loss<float>::kOp, grad, p, z, weight, reduction, statistics);
  }
};

}  // namespace densesiam
