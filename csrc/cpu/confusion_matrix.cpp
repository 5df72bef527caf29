// confusion_matrix on the CPU: every range of pixels counts into a table of its own, and the tables
// are added up. Integers: the order does not matter.
#include <limits>
#include <vector>

#include "../args.h"
#include "support/parallel.h"

namespace densesiam {
namespace {

template <class Body>
void dispatch_integer(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Byte:
      return body(Type<std::uint8_t>{});
    case ScalarType::Char:
      return body(Type<std::int8_t>{});
    case ScalarType::Short:
      return body(Type<std::int16_t>{});
    case ScalarType::Int:
      return body(Type<std::int32_t>{});
    case ScalarType::Long:
      return body(Type<std::int64_t>{});
    default:
      throw std::invalid_argument("confusion_matrix: expected integers");
  }
}

struct Numbers {
  std::int64_t predictions, classes, ignored;
};

// Adds the pixels to `table` (classes x predictions); false where one is out of range.
template <class Prediction, class Label>
bool count_pixels(const Prediction* prediction,  // [pixels]
                  const Label* label,            // [pixels]
                  std::int64_t pixels, const Numbers& numbers,
                  std::int64_t* table  // [classes, predictions]
) {
  bool fits = true;
  for (std::int64_t i = 0; i < pixels; ++i) {
    const std::int64_t column = prediction[i], row = label[i];
    if (row == numbers.ignored) continue;
    // Negative numbers are large ones without their sign.
    if (std::uint64_t(row) < std::uint64_t(numbers.classes) &&
        std::uint64_t(column) < std::uint64_t(numbers.predictions)) {
      ++table[row * numbers.predictions + column];
    } else {
      fits = false;
    }
  }
  return fits;
}

// Where a label or a prediction is out of its range every count is -1: the Python side, which can
// name the culprits, raises.
Tensor confusion_matrix(const Tensor& prediction, const Tensor& label, std::int64_t num_predictions,
                        std::int64_t num_classes, std::int64_t ignore_index) {
  const char* op = "confusion_matrix";
  check_counted(op, prediction, label, num_predictions, num_classes);
  const Tensor predictions = in_layout(prediction, Layout::planar);
  const Tensor labels = in_layout(label, Layout::planar);
  const Numbers numbers{num_predictions, num_classes, ignore_index};
  const std::int64_t cells = num_classes * num_predictions;
  Tensor result =
      torch::stable::new_zeros(prediction, {num_classes, num_predictions}, ScalarType::Long);
  std::int64_t* counts = mutable_data<std::int64_t>(result);
  bool all_fit = true;
  std::mutex mutex;
  // A range is worth a table of its own where it has more pixels than the table has cells.
  const std::int64_t block = std::max<std::int64_t>(cells, 1);
  const std::int64_t pixels = prediction.numel();
  parallel_blocks(ceil_divide(pixels, block), block, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = begin * block, length = std::min(pixels, end * block) - first;
    std::vector<std::int64_t> table(cells);
    bool fits = true;
    dispatch_integer(predictions.scalar_type(), [&](auto prediction_type) {
      dispatch_integer(labels.scalar_type(), [&](auto label_type) {
        fits = count_pixels(data<typename decltype(prediction_type)::type>(predictions) + first,
                            data<typename decltype(label_type)::type>(labels) + first, length,
                            numbers, table.data());
      });
    });
    const std::lock_guard<std::mutex> lock(mutex);
    all_fit = all_fit && fits;
    for (std::int64_t i = 0; i < cells; ++i) counts[i] += table[i];
  });
  if (!all_fit) std::fill_n(counts, cells, std::int64_t(-1));
  return result;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) { m.impl("confusion_matrix", TORCH_BOX(&densesiam::confusion_matrix)); }
