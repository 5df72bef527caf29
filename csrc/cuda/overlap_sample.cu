// overlap_sample under the CUDA key: checks, allocation and launch. The kernels are in
// csrc/kernels/.
#include "../common/overlap_sample_args.h"
#include "../kernels/overlap_sample.cuh"
#include "device.h"

namespace densesiam {
namespace {

Tensor overlap_sample(const Tensor& features, const Tensor& boxes, std::vector<std::int64_t> size) {
  check_overlap_sample(features, boxes, size);
  const OnDevice device(features);
  const Layout layout = layout_of(features);
  const Tensor source = in_layout(features, layout);
  const Tensor box = in_layout(boxes, Layout::planar);
  Tensor out = empty_in_layout({features.size(0), features.size(1), size[0], size[1]}, layout,
                               features.scalar_type(), features);
  if (out.numel() == 0) return out;
  const std::int64_t largest = std::max(source.numel(), out.numel());
  dispatch_box("overlap_sample", box.scalar_type(), [&](auto box_type) {
    dispatch_float("overlap_sample", source.scalar_type(), [&](auto type) {
      dispatch_index(largest, [&](auto index_type) {
        using T = typename decltype(type)::type;
        using Box = typename decltype(box_type)::type;
        using Index = typename decltype(index_type)::type;
        const OverlapSampleShape<Index> shape{Index(source.size(0)), Index(source.size(1)),
                                              int(source.size(2)),   int(source.size(3)),
                                              int(size[0]),          int(size[1])};
        launch_overlap_sample(data<T>(source), data<Box>(box), mutable_data<T>(out), shape,
                              layout == Layout::pixels, device.stream());
      });
    });
  });
  check_launch("overlap_sample");
  return out;
}

Tensor overlap_sample_backward(const Tensor& grad, const Tensor& boxes,
                               std::vector<std::int64_t> size, bool channels_last) {
  const OnDevice device(grad);
  const Layout layout = channels_last ? Layout::pixels : Layout::planar;
  const Tensor source = in_layout(grad, layout);
  const Tensor box = in_layout(boxes, Layout::planar);
  Tensor out = empty_in_layout({grad.size(0), grad.size(1), size[0], size[1]}, layout,
                               grad.scalar_type(), grad);
  if (out.numel() == 0) return out;
  const std::int64_t largest = std::max(source.numel(), out.numel());
  dispatch_box("overlap_sample_backward", box.scalar_type(), [&](auto box_type) {
    dispatch_float("overlap_sample_backward", source.scalar_type(), [&](auto type) {
      dispatch_index(largest, [&](auto index_type) {
        using T = typename decltype(type)::type;
        using Box = typename decltype(box_type)::type;
        using Index = typename decltype(index_type)::type;
        const OverlapSampleShape<Index> shape{Index(source.size(0)), Index(source.size(1)),
                                              int(size[0]),          int(size[1]),
                                              int(source.size(2)),   int(source.size(3))};
        launch_overlap_sample_backward(data<T>(source), data<Box>(box), mutable_data<T>(out), shape,
                                       channels_last, device.stream());
      });
    });
  });
  check_launch("overlap_sample_backward");
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CUDA, m) {
  m.impl("overlap_sample", TORCH_BOX(&densesiam::overlap_sample));
  m.impl("overlap_sample_backward", TORCH_BOX(&densesiam::overlap_sample_backward));
}
