// roi_align under the CUDA key: checks, allocation and launch. The kernels are in roi_align.cuh.
#include "roi_align.cuh"
#include "support/boxes.h"
#include "support/stream.h"

namespace densesiam {
namespace {

template <class C>
RoiAlignShape<C> roi_align_shape(const Tensor& maps, const Tensor& cells, double spatial_scale,
                                 std::int64_t sampling_ratio, bool aligned) {
  const int ratio = int(std::max<std::int64_t>(sampling_ratio, 0));
  return {unsigned(maps.size(0)), unsigned(cells.size(0)),
          unsigned(maps.size(1)), int(maps.size(2)),
          int(maps.size(3)),      int(cells.size(2)),
          int(cells.size(3)),     {C(spatial_scale), ratio, aligned}};
}

Tensor roi_align(const Tensor& features, const Tensor& boxes, std::vector<std::int64_t> size,
                 double spatial_scale, std::int64_t sampling_ratio, bool aligned) {
  check_map("roi_align", "features", features);
  check_rois("roi_align", boxes, features, size, sampling_ratio);
  const OnDevice device(features);
  const Layout layout = layout_of(features);
  const Tensor source = in_layout(features, layout);
  Tensor out = empty_in_layout({boxes.size(0), features.size(1), size[0], size[1]}, layout,
                               features.scalar_type(), features);
  if (out.numel() == 0) return out;
  check_images("roi_align", source);
  check_images("roi_align", out);
  dispatch_coordinates("roi_align", source, boxes, [&](auto type, auto c, const Tensor& box) {
    using T = typename decltype(type)::type;
    using C = typename decltype(c)::type;
    launch_roi_align(data<T>(source), data<C>(box), mutable_data<T>(out),
                     roi_align_shape<C>(source, out, spatial_scale, sampling_ratio, aligned),
                     layout == Layout::pixels, device.stream());
  });
  check_launch("roi_align");
  return out;
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale,
                          std::int64_t sampling_ratio, bool aligned, std::vector<std::int64_t> maps,
                          bool channels_last) {
  const char* op = "roi_align_backward";
  check_rois_backward(op, grad, boxes, maps, sampling_ratio);
  const OnDevice device(grad);
  const Layout layout = channels_last ? Layout::pixels : Layout::planar;
  const Tensor source = in_layout(grad, layout);
  Tensor out =
      empty_in_layout({maps[0], grad.size(1), maps[1], maps[2]}, layout, grad.scalar_type(), grad);
  if (out.numel() == 0) return out;
  check_images(op, source);
  check_images(op, out);
  dispatch_coordinates(op, source, boxes, [&](auto type, auto c, const Tensor& box) {
    using T = typename decltype(type)::type;
    using C = typename decltype(c)::type;
    launch_roi_align_backward(
        data<T>(source), data<C>(box), mutable_data<T>(out),
        roi_align_shape<C>(out, source, spatial_scale, sampling_ratio, aligned), channels_last,
        device.stream());
  });
  check_launch(op);
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("roi_align", TORCH_BOX(&densesiam::roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&densesiam::roi_align_backward));
}
