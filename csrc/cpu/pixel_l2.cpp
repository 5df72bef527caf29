// pixel_l2 on the CPU: the squared distance of p / |p| and z / |z|, norms clamped below at 1e-8.
#include "pixel_loss.h"

namespace densesiam {
namespace {

// Statistics a = 2 / (|p| |z|) and b = 2 cos / |p|^2, or 2 / |p|^2 below the clamp.
struct L2 : LossOfProducts<L2> {
  static constexpr const char* kOp = "pixel_l2";
  template <class A>
  static DENSESIAM_HD void finish(A pp, A zz, A pz, A& loss, A& a, A& b) {
    const A least = A(1e-16);  // NaN passes every comparison
    const A p_square = pp < least ? least : pp, z_square = zz < least ? least : zz;
    a = A(2) / (std::sqrt(p_square) * std::sqrt(z_square));
    const A twice_cosine = pz * a;
    b = (pp < least ? A(2) : twice_cosine) / p_square;
    loss = pp / p_square + zz / z_square - twice_cosine;
  }
};

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  using Operators = densesiam::PixelLossOperators<densesiam::L2>;
  m.impl("pixel_l2", TORCH_BOX(&Operators::forward));
  m.impl("pixel_l2_backward", TORCH_BOX(&Operators::backward));
}
