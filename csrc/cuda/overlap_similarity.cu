// overlap_similarity under the CUDA key: checks, allocation and launches. The kernels are in
// overlap_similarity.cuh.
#include "overlap_similarity.cuh"
#include "support/boxes.h"
#include "support/pixel_loss.h"

namespace densesiam {
namespace {

// The boxes, or (0, 0, 1, 1) for every image.
Tensor boxes_or_whole(const std::optional<Tensor>& boxes, const Tensor& features) {
  if (boxes) return *boxes;
  Tensor whole = torch::stable::new_zeros(features, {features.size(0), 4},
                                          accumulate_type(features.scalar_type()));
  Tensor corner = torch::stable::narrow(whole, 1, 2, 2);
  torch::stable::fill_(corner, 1.0);
  return whole;
}

// A map, the taps of its grid (box_taps) and their shape.
struct Sampled {
  Tensor map, boxes, taps;
  OverlapSampleShape shape;

  template <class Source, class T = typename Source::T>
  Source source() const {
    const auto* table = static_cast<const StoredTap<Accumulate<T>>*>(taps.const_data_ptr());
    return {data<T>(map), table, shape.height, shape.width, shape.rows, shape.columns};
  }
};

Sampled sample(const char* op, const Tensor& features, const std::optional<Tensor>& boxes,
               Layout layout, const std::vector<std::int64_t>& size, cudaStream_t stream) {
  Sampled result;
  result.boxes = boxes_or_whole(boxes, features);
  check_images(op, features);
  result.map = in_layout(features, layout);
  result.shape = {unsigned(features.size(0)),
                  unsigned(features.size(1)),
                  int(features.size(2)),
                  int(features.size(3)),
                  int(size[0]),
                  int(size[1])};
  const std::int64_t cells = features.size(0) * (size[0] + size[1]);
  result.taps = torch::stable::new_empty(features, {cells, 4}, ScalarType::Int);  // 16 bytes each
  dispatch_coordinates(op, features, result.boxes, [&](auto type, auto c, const Tensor& box) {
    using A = Accumulate<typename decltype(type)::type>;
    using C = typename decltype(c)::type;
    launch(box_taps<A, C>, dim3(unsigned(divide_up(cells, kThreads))), dim3(kThreads), 0, stream,
           data<C>(box), result.shape, static_cast<StoredTap<A>*>(result.taps.mutable_data_ptr()));
  });
  return result;
}

// Calls body(p, z) with the two sources.
template <class T, class Body>
void with_samples(const Sampled& p, const Sampled& z, bool channels_last, bool packs,
                  const Body& body) {
  const auto run = [&](auto source) {
    using Source = decltype(source);
    body(p.source<Source>(), z.source<Source>());
  };
  if (channels_last && packs) {
    run(SampledSource<T, kPack<T>, true>{});
  } else if (channels_last) {
    run(SampledSource<T, 1, true>{});
  } else {
    run(SampledSource<T, 1, false>{});
  }
}

std::tuple<Tensor, Tensor> overlap_similarity(const Tensor& p, const Tensor& z,
                                              std::optional<Tensor> boxes_p,
                                              std::optional<Tensor> boxes_z,
                                              std::vector<std::int64_t> size, std::string kind,
                                              std::optional<Tensor> weight, std::string reduction,
                                              bool keep) {
  const char* op = "overlap_similarity";
  check(!keep, op, ": keep must be False, only the CPU's kernel keeps gradients");
  check_overlap(op, p, z, boxes_p, boxes_z, size);
  const bool mean = is_mean(op, reduction);
  const OnDevice device(p);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  Tensor loss = empty_or_zeros(p, mean ? Sizes{} : Sizes{p.size(0), size[0], size[1]}, dtype);
  Tensor statistics = torch::stable::new_empty(p, {p.size(0), 2, size[0] * size[1]}, dtype);
  if (p.numel() == 0) return {loss, statistics};
  check_images(op, statistics);
  const Layout layout = layout_of(p);
  const bool channels_last = layout == Layout::pixels;
  const Sampled p_samples = sample(op, p, boxes_p, layout, size, device.stream());
  const Sampled z_samples = sample(op, z, boxes_z, layout, size, device.stream());
  const PixelShape shape{unsigned(p.size(0)), unsigned(p.size(1)), unsigned(size[0] * size[1])};
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const bool packs = access_of<T>(channels_last, p, {&p_samples.map, &z_samples.map}).packs;
    dispatch_kind(op, kind, [&](auto loss_family) {
      using Loss = typename decltype(loss_family)::template of<Accumulate<T>>;
      with_samples<T>(p_samples, z_samples, channels_last, packs, [&](auto source, auto target) {
        run_pixel_loss<Loss>(source, target, weights, shape, mean, loss, statistics,
                             device.stream());
      });
    });
  });
  check_launch(op);
  return {loss, statistics};
}

Tensor overlap_similarity_backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                                   std::optional<Tensor> boxes_p, std::optional<Tensor> boxes_z,
                                   std::vector<std::int64_t> size, std::string kind,
                                   std::optional<Tensor> weight, std::string reduction,
                                   const Tensor& statistics) {
  const char* op = "overlap_similarity_backward";
  check_overlap(op, p, z, boxes_p, boxes_z, size);
  const bool mean = is_mean(op, reduction);
  const OnDevice device(p);
  const cudaStream_t stream = device.stream();
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  const Layout layout = layout_of(p);
  const bool channels_last = layout == Layout::pixels;
  Tensor out =
      empty_in_layout({p.size(0), p.size(1), p.size(2), p.size(3)}, layout, p.scalar_type(), p);
  if (p.numel() == 0) return out;
  const Tensor upstream = checked_grad(op, grad, mean, {p.size(0), size[0], size[1]}, p);
  const Tensor kept = checked_kept(op, "statistics", statistics, accumulate_type(p.scalar_type()),
                                   {p.size(0), 2, size[0] * size[1]}, p);
  const Sampled p_samples = sample(op, p, boxes_p, layout, size, stream);
  const Sampled z_samples = sample(op, z, boxes_z, layout, size, stream);
  const PixelShape shape{unsigned(p.size(0)), unsigned(p.size(1)), unsigned(size[0] * size[1])};
  // Only its memory is used: in p's layout, (B, C, Kh Kw).
  const Tensor gradients =
      torch::stable::new_empty(p, {p.size(0), p.size(1), size[0], size[1]}, p.scalar_type());
  check_images(op, gradients);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    const auto gradient = upstream_of<A>(upstream, mean, weights, shape);
    const bool packs = access_of<T>(channels_last, p, {&p_samples.map, &z_samples.map}).packs;
    dispatch_kind(op, kind, [&](auto loss_family) {
      using Loss = typename decltype(loss_family)::template of<A>;
      with_samples<T>(p_samples, z_samples, channels_last, packs, [&](auto source, auto target) {
        launch_pixel_loss_backward<Loss>(gradient, source, target, data<A>(kept), shape,
                                         mutable_data<T>(gradients), stream);
      });
    });
  });
  dispatch_coordinates(op, p, p_samples.boxes, [&](auto type, auto c, const Tensor& box) {
    using T = typename decltype(type)::type;
    using C = typename decltype(c)::type;
    launch_overlap_sample_backward(data<T>(gradients), data<C>(box), mutable_data<T>(out),
                                   p_samples.shape, channels_last, stream);
  });
  check_launch(op);
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("overlap_similarity", TORCH_BOX(&densesiam::overlap_similarity));
  m.impl("overlap_similarity_backward", TORCH_BOX(&densesiam::overlap_similarity_backward));
}
