// pixel_l2 under the CUDA key: the squared distance of p / |p| and z / |z|, norms clamped below at
// 1e-8. Operations an element: 6.
#include "support/pixel_loss.h"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

// Statistics a = 2 / (|p| |z|) and b = 2 cos / |p|^2, or 2 / |p|^2 below the clamp.
template <class A>
struct L2 : LossOfProducts<L2, A> {
  static constexpr const char* kOp = "pixel_l2";

  DENSESIAM_HD PixelLoss<A> finish() const {
    const A pp = this->pp, zz = this->zz, least = A(1e-16);  // NaN passes every comparison
    const A p_inverse = inverse_root(pp < least ? least : pp);
    const A z_inverse = inverse_root(zz < least ? least : zz);
    const A p_square = pp * p_inverse * p_inverse, z_square = zz * z_inverse * z_inverse;
    const A cosine = this->pz * p_inverse * z_inverse;
    const A b = (pp < least ? A(2) : 2 * cosine) * p_inverse * p_inverse;
    return {p_square + z_square - 2 * cosine, 2 * p_inverse * z_inverse, b};
  }
};

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  using Operators = densesiam::PixelLossOperators<densesiam::L2>;
  m.impl("pixel_l2", TORCH_BOX(&Operators::forward));
  m.impl("pixel_l2_backward", TORCH_BOX(&Operators::backward));
}
