// label_map under the CUDA key: checks, allocation and launch. The kernels are in label_map.cuh.
#include "label_map.cuh"
#include "support/stream.h"

namespace densesiam {
namespace {

Tensor label_map(const Tensor& logits, std::vector<std::int64_t> size) {
  const char* op = "label_map";
  check_map(op, "logits", logits);
  check(logits.size(1) > 0, op, ": logits must have at least one class, got shape ",
        shape_of(logits));
  check_size(op, size);
  const OnDevice device(logits);
  const Layout layout = layout_of(logits);
  const Tensor source = in_layout(logits, layout);
  Tensor out =
      torch::stable::new_empty(logits, {logits.size(0), size[0], size[1]}, ScalarType::Long);
  if (out.numel() == 0) return out;
  check_images(op, source);
  check_images(op, out);
  const LabelMapShape shape{unsigned(source.size(0)),
                            unsigned(source.size(1)),
                            int(source.size(2)),
                            int(source.size(3)),
                            int(size[0]),
                            int(size[1])};
  dispatch_float(op, source.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch_label_map(data<T>(source), mutable_data<std::int64_t>(out), shape,
                     layout == Layout::pixels, device.stream());
  });
  check_launch(op);
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) { m.impl("label_map", TORCH_BOX(&densesiam::label_map)); }
