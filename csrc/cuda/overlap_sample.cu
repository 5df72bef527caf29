// overlap_sample under the CUDA key: checks, allocation and launch. The kernels are in
// overlap_sample.cuh.
#include "overlap_sample.cuh"
#include "support/boxes.h"
#include "support/stream.h"

namespace densesiam {
namespace {

Tensor overlap_sample(const Tensor& features, const Tensor& boxes, std::vector<std::int64_t> size) {
  check_map("overlap_sample", "features", features);
  check_boxes("overlap_sample", "boxes", boxes, features);
  check_size("overlap_sample", size);
  const OnDevice device(features);
  const Layout layout = layout_of(features);
  const Tensor source = in_layout(features, layout);
  Tensor out = empty_in_layout({features.size(0), features.size(1), size[0], size[1]}, layout,
                               features.scalar_type(), features);
  if (out.numel() == 0) return out;
  check_images("overlap_sample", source);
  check_images("overlap_sample", out);
  const OverlapSampleShape shape{unsigned(source.size(0)),
                                 unsigned(source.size(1)),
                                 int(source.size(2)),
                                 int(source.size(3)),
                                 int(size[0]),
                                 int(size[1])};
  dispatch_coordinates("overlap_sample", source, boxes, [&](auto type, auto c, const Tensor& box) {
    using T = typename decltype(type)::type;
    using C = typename decltype(c)::type;
    launch_overlap_sample(data<T>(source), data<C>(box), mutable_data<T>(out), shape,
                          layout == Layout::pixels, device.stream());
  });
  check_launch("overlap_sample");
  return out;
}

Tensor overlap_sample_backward(const Tensor& grad, const Tensor& boxes,
                               std::vector<std::int64_t> size, bool channels_last) {
  const char* op = "overlap_sample_backward";
  check_map(op, "grad", grad);
  check_boxes(op, "boxes", boxes, grad);
  check_size(op, size);
  const OnDevice device(grad);
  const Layout layout = channels_last ? Layout::pixels : Layout::planar;
  const Tensor source = in_layout(grad, layout);
  Tensor out = empty_in_layout({grad.size(0), grad.size(1), size[0], size[1]}, layout,
                               grad.scalar_type(), grad);
  if (out.numel() == 0) return out;
  check_images(op, source);
  check_images(op, out);
  const OverlapSampleShape shape{
      unsigned(source.size(0)), unsigned(source.size(1)), int(size[0]), int(size[1]),
      int(source.size(2)),      int(source.size(3))};
  dispatch_coordinates(op, source, boxes, [&](auto type, auto c, const Tensor& box) {
    using T = typename decltype(type)::type;
    using C = typename decltype(c)::type;
    launch_overlap_sample_backward(data<T>(source), data<C>(box), mutable_data<T>(out), shape,
                                   channels_last, device.stream());
  });
  check_launch(op);
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("overlap_sample", TORCH_BOX(&densesiam::overlap_sample));
  m.impl("overlap_sample_backward", TORCH_BOX(&densesiam::overlap_sample_backward));
}
