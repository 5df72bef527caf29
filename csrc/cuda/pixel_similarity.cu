// pixel_similarity under the CUDA key: checks, allocation and launch. The kernels are in
// pixel_similarity.cuh.
#include "support/similarity.h"

namespace densesiam {
namespace {

void check_pair(const char* op, const Tensor& p, const Tensor& z) {
  check(p.dim() == 3 && z.dim() == 3 && shape_of(p) == shape_of(z) &&
            p.scalar_type() == z.scalar_type(),
        op, ": p and z must be (B, C, P) of one shape and type, got ", shape_of(p), " and ",
        shape_of(z));
}

std::tuple<Tensor, Tensor> pixel_similarity(const Tensor& p, const Tensor& z,
                                            std::optional<Tensor> weight, std::string kind,
                                            std::string reduction) {
  const char* op = "pixel_similarity";
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const OnDevice device(p);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  using Sizes = std::vector<std::int64_t>;
  Tensor loss = torch::stable::new_zeros(p, mean ? Sizes{} : Sizes{p.size(0), p.size(2)}, dtype);
  Tensor statistics = torch::stable::new_empty(p, {p.size(0), 2, p.size(2)}, dtype);
  if (p.numel() == 0) return {loss, statistics};
  const PixelShape shape = pixel_shape(op, p);
  const bool channels_last = reads_pixels(layout, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_kind<Accumulate<T>>(op, kind, [&](auto loss_type) {
      using Loss = typename decltype(loss_type)::type;
      const bool packs = reads_packs<T>(channels_last, p, {&p_source, &z_source});
      with_source(data<T>(p_source), channels_last, packs, [&](auto source) {
        auto target = source;
        target.base = data<T>(z_source);
        run_similarity<Loss>(source, target, weights, shape, mean, loss, statistics,
                             device.stream());
      });
    });
  });
  check_launch(op);
  return {loss, statistics};
}

Tensor pixel_similarity_backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                                 std::optional<Tensor> weight, const Tensor& statistics,
                                 std::string kind, std::string reduction) {
  const char* op = "pixel_similarity_backward";
  check_pair(op, p, z);
  const bool mean = is_mean(op, reduction);
  const OnDevice device(p);
  const Layout layout = layout_of(p);
  const Tensor p_source = in_layout(p, layout), z_source = in_layout(z, layout);
  const Tensor upstream = in_layout(grad, Layout::planar);
  const Tensor kept = in_layout(statistics, Layout::planar);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  Tensor out = empty_in_layout({p.size(0), p.size(1), p.size(2)}, layout, p.scalar_type(), p);
  if (p.numel() == 0) return out;
  const PixelShape shape = pixel_shape(op, p);
  const bool channels_last = reads_pixels(layout, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    Tensor scale;
    const auto gradient = upstream_of<A>(upstream, mean, weights, shape, scale, device.stream());
    dispatch_kind<A>(op, kind, [&](auto loss_type) {
      using Loss = typename decltype(loss_type)::type;
      // Per-pixel numbers are read in packs where pixels are: a mean's one number need not be.
      const Tensor& per_pixel = mean ? kept : upstream;
      const bool packs =
          reads_packs<T>(channels_last, p, {&p_source, &z_source, &out, &kept, &per_pixel});
      with_source(data<T>(p_source), channels_last, packs, [&](auto source) {
        auto target = source;
        target.base = data<T>(z_source);
        launch_pixel_similarity_backward<Loss>(gradient, source, target, optional_data<A>(weights),
                                               data<A>(kept), shape, mutable_data<T>(out),
                                               device.stream());
      });
    });
  });
  check_launch(op);
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("pixel_similarity", TORCH_BOX(&densesiam::pixel_similarity));
  m.impl("pixel_similarity_backward", TORCH_BOX(&densesiam::pixel_similarity_backward));
}
