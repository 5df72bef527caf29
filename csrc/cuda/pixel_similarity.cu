// pixel_similarity under the CUDA key: support/pixel_loss.h with the loss of that name.
#include "support/pixel_loss.h"

namespace densesiam {
namespace {

std::tuple<Tensor, Tensor> pixel_similarity(const Tensor& p, const Tensor& z, std::string kind,
                                            std::optional<Tensor> weight, std::string reduction) {
  const char* op = "pixel_similarity";
  return dispatch_kind(op, kind, [&](auto loss) {
    return pixel_loss<decltype(loss)::template of>(op, p, z, weight, reduction);
  });
}

Tensor pixel_similarity_backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                                 std::string kind, std::optional<Tensor> weight,
                                 std::string reduction, const Tensor& statistics) {
  const char* op = "pixel_similarity_backward";
  return dispatch_kind(op, kind, [&](auto loss) {
    return pixel_loss_backward<decltype(loss)::template of>(op, grad, p, z, weight, reduction,
                                                            statistics);
  });
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("pixel_similarity", TORCH_BOX(&densesiam::pixel_similarity));
  m.impl("pixel_similarity_backward", TORCH_BOX(&densesiam::pixel_similarity_backward));
}
