// Number types shared by the CPU kernels, the CUDA kernels and the CPU emulator of the CUDA
// kernels.
//
// Storage types are double, float, half and bfloat16; arithmetic happens in Accumulate<T>: double
// for double, float for everything else. This header knows nothing of torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DENSESIAM_HD __host__ __device__ __forceinline__
#else
#define DENSESIAM_HD inline __attribute__((always_inline))
#endif

namespace densesiam {

template <class To, class From>
DENSESIAM_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

#ifdef __CUDACC__
using half = __half;
using bfloat16 = __nv_bfloat16;

DENSESIAM_HD float to_float(half value) { return __half2float(value); }
DENSESIAM_HD float to_float(bfloat16 value) { return __bfloat162float(value); }
DENSESIAM_HD void from_float(float value, half& result) { result = __float2half_rn(value); }
DENSESIAM_HD void from_float(float value, bfloat16& result) { result = __float2bfloat16_rn(value); }
#else
struct half {
  std::uint16_t bits;
};
struct bfloat16 {
  std::uint16_t bits;
};

// Branch-free conversions, so that loops over them vectorise on every instruction set. They round
// to nearest even and keep infinities, NaN and subnormal numbers.
DENSESIAM_HD float to_float(half value) {
  const std::uint32_t sign = std::uint32_t(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = std::uint32_t(value.bits & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;  // re-biases the exponent, exactly
  const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // inf, NaN
  return bit_cast<float>(bit_cast<std::uint32_t>(scaled) | special | sign);
}
DENSESIAM_HD float to_float(bfloat16 value) {
  return bit_cast<float>(std::uint32_t(value.bits) << 16);
}
DENSESIAM_HD void from_float(float value, half& result) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: re-bias the exponent and round the 13 dropped bits to nearest even.
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 aligns the mantissa, the addition itself rounds.
  const std::uint32_t subnormal =
      bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  std::uint32_t rounded = magnitude < (113u << 23) ? subnormal : normal;
  rounded = magnitude >= 0x477ff000u ? 0x7c00u : rounded;  // 65520 and above: infinity
  rounded = magnitude > 0x7f800000u ? 0x7e00u : rounded;   // NaN
  result.bits = std::uint16_t(sign | rounded);
}
DENSESIAM_HD void from_float(float value, bfloat16& result) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  result.bits = std::uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
#endif

DENSESIAM_HD float to_float(float value) { return value; }
DENSESIAM_HD double to_float(double value) { return value; }
DENSESIAM_HD void from_float(float value, float& result) { result = value; }
DENSESIAM_HD void from_float(double value, double& result) { result = value; }

// The type in which values of storage type T are summed and interpolated.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
DENSESIAM_HD T from_float(Accumulate<T> value) {
  T result;
  from_float(value, result);
  return result;
}

// The value, in a register that the compiler cannot look into.
template <class A>
DENSESIAM_HD A keep(A value) {
#if defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}

// a / b, correctly rounded where b and the result are normal numbers and NaN where they are not. On
// a GPU the division operator calls a subroutine for the latter, and a call spills registers.
DENSESIAM_HD float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  r = fmaf(fmaf(-b, r, 1.0f), r, r);
  float q = a * r;
  q = fmaf(fmaf(-b, q, a), r, q);
  return fmaf(fmaf(-b, q, a), r, q);
#else
  return a / b;
#endif
}
DENSESIAM_HD double quotient(double a, double b) {
#ifdef __CUDA_ARCH__
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(b));  // 20 bits; each step doubles them
  r = fma(fma(-b, r, 1.0), r, r);
  r = fma(fma(-b, r, 1.0), r, r);
  r = fma(fma(-b, r, 1.0), r, r);
  const double q = a * r;
  return fma(fma(-b, q, a), r, q);
#else
  return a / b;
#endif
}

// a * b, rounded: a compiler may fuse a product with the sum that takes it, and each does so in
// other places. Coordinates have to be the same bits in every kernel.
DENSESIAM_HD float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return keep(a * b);
#endif
}
DENSESIAM_HD double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return keep(a * b);
#endif
}

// 1 over the power of two at or below a magnitude, or a neighbour of it where it is at an end of
// the exponents. Products with it are exact but where they underflow. NaN of infinity and NaN.
DENSESIAM_HD float inverse_unit(float magnitude) {
  const std::uint32_t exponent = bit_cast<std::uint32_t>(magnitude) >> 23;
  const std::uint32_t inverse = exponent < 253 ? 254 - exponent : 1;
  return bit_cast<float>(inverse << 23) + (magnitude - magnitude);
}
DENSESIAM_HD double inverse_unit(double magnitude) {
  const std::uint64_t exponent = bit_cast<std::uint64_t>(magnitude) >> 52;
  const std::uint64_t inverse = exponent < 2045 ? 2046 - exponent : 1;
  return bit_cast<double>(inverse << 52) + (magnitude - magnitude);
}

// A weight in units of the largest one's magnitude, whose inverse_unit is given: all that a mean
// knows of it. Products with the weights themselves, and their sum, may be too large or too small
// for the type. What is not 0 stays so: an image of weight 0 counts nowhere, and any other does.
template <class A>
DENSESIAM_HD A in_units(A weight, A inverse_unit) {
  constexpr A least = std::numeric_limits<A>::denorm_min();
  if (weight == A(0)) return A(0);
  const A scaled = weight * inverse_unit;
  return scaled == A(0) ? least : scaled;
}

// e^x, within 2 + 1.3 |x| units of the last place: rounding x alone to its own last place does as
// much. 0 where it is below the least normal number. On a GPU std::exp takes eight instructions,
// this takes two.
DENSESIAM_HD float exponential(float x) {
  const float power = x * 1.44269504f;  // log2 e
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power));
  return result;
#else
  return std::exp2(power);
#endif
}
DENSESIAM_HD double exponential(double x) { return std::exp(x); }

// 1 / sqrt(a), within two units of the last place.
template <class A>
DENSESIAM_HD A inverse_root(A a) {
#ifdef __CUDA_ARCH__
  return ::rsqrt(a);
#else
  return A(1) / std::sqrt(a);
#endif
}

}  // namespace densesiam
