// pixel_similarity on the CPU: pixel_loss.h with the loss of that name.
#include "pixel_loss.h"

namespace densesiam {
namespace {

std::tuple<Tensor, Tensor> pixel_similarity(const Tensor& p, const Tensor& z, std::string kind,
                                            std::optional<Tensor> weight, std::string reduction) {
  const char* op = "pixel_similarity";
  return dispatch_kind(op, kind, [&](auto loss) {
    return pixel_loss<typename decltype(loss)::type>(op, p, z, weight, reduction);
  });
}

Tensor pixel_similarity_backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                                 std::string kind, std::optional<Tensor> weight,
                                 std::string reduction, const Tensor& statistics) {
  const char* op = "pixel_similarity_backward";
  return dispatch_kind(op, kind, [&](auto loss) {
    using Loss = typename decltype(loss)::type;
    return pixel_loss_backward<Loss>(op, grad, p, z, weight, reduction, statistics);
  });
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("pixel_similarity", TORCH_BOX(&densesiam::pixel_similarity));
  m.impl("pixel_similarity_backward", TORCH_BOX(&densesiam::pixel_similarity_backward));
}
