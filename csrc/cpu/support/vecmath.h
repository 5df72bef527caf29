// exp and log for loops over float: branch-free, so that they vectorise on every instruction set.
//
// Each covers what a softmax needs and no more, to within about one unit in the last place
// (tests/csrc/cpu/test_kernels.py measures it through the operations). double calls the C library.
#pragma once

#include "../../numeric.h"

namespace densesiam {

// exp(x) for x <= 40, as x - max(x) always is; 0 where the result is below the smallest subnormal;
// NaN for NaN.
DENSESIAM_HD float exp_of_negative(float x) {
  // Below -104 the result is 0 in any case, and its exponent must not wrap around.
  x = x < -104.0f ? -104.0f : x;
  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which then stands in
  // the lowest bits. ln 2 is split so that n times its first part is exact.
  const float magic = 0x1.8p23f;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // exp(r) = 1 + r + r^2 q(r); q is the degree-4 polynomial of least maximum error (3e-9).
  float q = 1.381454058e-3f;
  q = q * r + 8.368745446e-3f;
  q = q * r + 4.166838899e-2f;
  q = q * r + 1.666652113e-1f;
  q = q * r + 4.999999404e-1f;
  const float y = 1.0f + (r + r * r * q);
  // Times 2^n in two steps, since n reaches into the subnormal numbers.
  const std::uint32_t exponent =
      bit_cast<std::uint32_t>(shifted) - bit_cast<std::uint32_t>(magic) + (127u + 64u);
  return y * bit_cast<float>(exponent << 23) * 0x1p-64f;
}

// log(x) for x >= the smallest normal number; infinity and NaN give themselves.
DENSESIAM_HD float log_of_normal(float x) {
  // x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const std::uint32_t root = 0x3f3504f3u;  // the bits of sqrt(1/2)
  const std::uint32_t above = bit_cast<std::uint32_t>(x) - root;
  const float e = float(std::int32_t(above) >> 23);
  const float f = bit_cast<float>((above & 0x007fffffu) + root) - 1.0f;
  // log(1 + f) = 2 artanh(s), s = f / (2 + f): the series in s^2 <= 0.03, arranged as f minus a
  // small correction.
  const float s = f / (2.0f + f);
  const float z = s * s;
  const float series = z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9))));
  const float correction = s * (f - series) - e * -2.12194440e-4f;
  const float y = e * 0.693359375f + (f - correction);
  return x - x == 0.0f ? y : x;
}

DENSESIAM_HD double exp_of_negative(double x) { return std::exp(x); }
DENSESIAM_HD double log_of_normal(double x) { return std::log(x); }

}  // namespace densesiam
