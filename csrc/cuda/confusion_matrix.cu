// confusion_matrix under the CUDA key: checks, allocation and launch. The kernels are in
// confusion_matrix.cuh.
#include "confusion_matrix.cuh"
#include "support/stream.h"

namespace densesiam {
namespace {

Integers integers(const char* op, const Tensor& tensor, std::int64_t limit, std::int64_t ignore) {
  const void* values = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Byte:
      return {values, IntegerType::uint8, limit, ignore};
    case ScalarType::Char:
      return {values, IntegerType::int8, limit, ignore};
    case ScalarType::Short:
      return {values, IntegerType::int16, limit, ignore};
    case ScalarType::Int:
      return {values, IntegerType::int32, limit, ignore};
    case ScalarType::Long:
      return {values, IntegerType::int64, limit, ignore};
    default:
      throw std::invalid_argument(std::string(op) + ": prediction and label must hold integers");
  }
}

Tensor confusion_matrix(const Tensor& prediction, const Tensor& label, std::int64_t num_predictions,
                        std::int64_t num_classes, std::int64_t ignore_index) {
  const char* op = "confusion_matrix";
  check_counted(op, prediction, label, num_predictions, num_classes);
  const OnDevice device(prediction);
  const Tensor predicted = in_layout(prediction, Layout::planar);
  const Tensor truth = in_layout(label, Layout::planar);
  Tensor out =
      torch::stable::new_zeros(prediction, {num_classes, num_predictions}, ScalarType::Long);
  if (predicted.numel() == 0) return out;
  // No prediction is ignored: num_predictions is out of range already.
  launch_count_pairs(integers(op, predicted, num_predictions, num_predictions),
                     integers(op, truth, num_classes, ignore_index), predicted.numel(),
                     mutable_data<std::int64_t>(out), device.stream());
  check_launch(op);
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("confusion_matrix", TORCH_BOX(&densesiam::confusion_matrix));
}
