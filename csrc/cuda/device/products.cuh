// Product of two tiles in shared memory, on CUDA cores or tensor cores.
//
//   sums[row][column] += sum over k of a[row][k] b[column][k]
//
// Both tiles hold rows of kDepth numbers, each with a stride of its own. kThreads threads share the
// Rows x Columns sums; visit() says which thread has which. Tiles hold what operand() makes of a
// number.
#pragma once

#include "halves.cuh"

namespace densesiam {
inline namespace DENSESIAM_TARGET {

// Numbers a tile's row: 128 bytes and 16 of padding, so that neighbouring rows start 4 banks apart.
template <class A>
constexpr int kDepth = 128 / int(sizeof(A));
template <class A>
constexpr int kStride = kDepth<A> + 16 / int(sizeof(A));

// Rounded to tf32: 11 bits of mantissa (exact for half types), the range of float32.
__device__ __forceinline__ float round_to_tf32(float value) {
  unsigned bits;
#ifdef DENSESIAM_EMULATOR
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x1000u) & ~0x1fffu;
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#endif
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

// c += a b on a warp, a 16 x 8, b 8 x 8, of tf32 numbers. Lane l = 4 g + t holds a[g], a[g + 8] at
// columns t, t + 4; b[t], b[t + 4] at column g; c[g], c[g + 8] at columns 2 t, 2 t + 1.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const float (&a)[4],
                                              const float (&b)[2]) {
#ifdef DENSESIAM_EMULATOR
  ::emulator::multiply_16x8x8(c, a, b, EMULATOR_SITE);
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

// One multiply-add at a time: exact to A. A thread has a block of sums, its rows and columns spread
// over the tile in steps, so that neighbouring threads have neighbouring columns.
template <class A_, int Rows, int Columns>
struct PlainProduct {
  using A = A_;
  static constexpr int kColumnThreads = 16, kRowThreads = kThreads / kColumnThreads;
  static constexpr int kM = Rows / kRowThreads, kN = Columns / kColumnThreads;
  // Between the rows of a tile that lanes write as visit() has it: to banks of their own.
  static constexpr int kGap = 16;
  A sums[kM][kN];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sums[i][j] = A(0);
    }
  }
  static constexpr bool kSplit = false;
  static __device__ __forceinline__ A operand(A value) { return value; }
  static __device__ __forceinline__ bool is_exceptional(A) { return false; }
  template <int StrideA = kStride<A>, int StrideB = kStride<A>>
  __device__ __forceinline__ void add(const A* a, const A* b) {
    constexpr int width = kPack<A>;
    const A* a_row = a + threadIdx.x / kColumnThreads * StrideA;
    const A* b_row = b + threadIdx.x % kColumnThreads * StrideB;
#pragma unroll 1
    for (int k = 0; k < kDepth<A>; k += width) {
      Pack<A, width> x[kM];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        x[i] = *reinterpret_cast<const Pack<A, width>*>(a_row + i * kRowThreads * StrideA + k);
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const auto y =
            *reinterpret_cast<const Pack<A, width>*>(b_row + j * kColumnThreads * StrideB + k);
#pragma unroll
        for (int w = 0; w < width; ++w) {
#pragma unroll
          for (int i = 0; i < kM; ++i) sums[i][j] += x[i].values[w] * y.values[w];
        }
      }
    }
  }
  // scratch[part][column] = this thread's share of sum over rows of body(row, column, sum).
  static constexpr int kParts = kRowThreads;
  template <int Line, class Body>
  __device__ __forceinline__ void column_sums(A* scratch, const Body& body) {
    const int row = threadIdx.x / kColumnThreads, column = threadIdx.x % kColumnThreads;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      A total = A(0);
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        total += body(row + i * kRowThreads, column + j * kColumnThreads, sums[i][j]);
      }
      scratch[row * Line + column + j * kColumnThreads] = total;
    }
  }
  // Calls body(row, column, sum) for each of the thread's sums.
  template <class Body>
  __device__ __forceinline__ void visit(const Body& body) {
    const int row = threadIdx.x / kColumnThreads, column = threadIdx.x % kColumnThreads;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        body(row + i * kRowThreads, column + j * kColumnThreads, sums[i][j]);
      }
    }
  }
};

// x = high + low, each with tf32's 11 bits: 22 of the 24 bits of a finite x far from overflow.
struct SplitFloat {
  float high, low;

  static __device__ __forceinline__ SplitFloat of(float x) {
    constexpr unsigned half = 0x1000u, kept = ~0x1fffu;  // of tf32's last place; its bits
    unsigned bits;
    std::memcpy(&bits, &x, sizeof(bits));
    bits = (bits + half) & kept;
    SplitFloat parts;
    std::memcpy(&parts.high, &bits, sizeof(bits));
    parts.low = x - parts.high;
    std::memcpy(&bits, &parts.low, sizeof(bits));
    bits = (bits + half) & kept;
    std::memcpy(&parts.low, &bits, sizeof(bits));
    return parts;
  }
};

// On tensor cores. Numbers that came from half types are held by tf32 exactly. Split: others, as
// the sum of two; a b = high high + high low + low high, and what is left out is 2^-22 of it. That
// is no product of infinities, of NaN, of what rounds to infinity or nearly vanishes:
// add_exceptional() is for those.
template <int Rows, int Columns, bool Split>
struct TensorProduct {
  using A = float;
  static constexpr int kRowWarps = Rows / 32, kColumnWarps = kWarps / kRowWarps;
  static constexpr int kM = 2, kN = Columns / kColumnWarps / 8;
  static constexpr int kGap = 8;
  static constexpr bool kSplit = Split;
  float sums[kM][kN][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int s = 0; s < 4; ++s) sums[i][j][s] = 0.0f;
      }
    }
  }
  static __device__ __forceinline__ float operand(float value) {
    return Split ? value : round_to_tf32(value);
  }
  // Splits lose nothing from 2^-113 on: below, tf32 has too few places for the lower half.
  static __device__ __forceinline__ bool is_exceptional(float value) {
    const float size = std::fabs(value);
    return Split && !(size < 0x1p127f && (size >= 0x1p-113f || size == 0.0f));
  }
  template <int StrideA = kStride<float>, int StrideB = kStride<float>>
  __device__ __forceinline__ void add(const float* a, const float* b) {
    const int warp = threadIdx.x / kLanes, g = threadIdx.x % kLanes / 4, t = threadIdx.x % 4;
    const float* a_rows = a + (warp % kRowWarps * 32 + g) * StrideA + t;
    const float* b_rows = b + (warp / kRowWarps * kN * 8 + g) * StrideB + t;
    [[maybe_unused]] constexpr int ahead = kM * kN * (Split ? 2 : 1) < 16 ? 2 : 1;  // registers
#pragma unroll ahead
    for (int k = 0; k < kDepth<float>; k += 8) {
      float x[kM][4], x_low[kM][4];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        const float* row = a_rows + i * 16 * StrideA + k;
        const float values[4] = {row[0], row[8 * StrideA], row[4], row[8 * StrideA + 4]};
        take<4>(values, x[i], x_low[i]);
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const float* row = b_rows + j * 8 * StrideB + k;
        const float values[2] = {row[0], row[4]};
        float y[2], y_low[2];
        take<2>(values, y, y_low);
#pragma unroll
        for (int i = 0; i < kM; ++i) {
          if constexpr (Split) {
            multiply_tf32(sums[i][j], x_low[i], y);
            multiply_tf32(sums[i][j], x[i], y_low);
          }
          multiply_tf32(sums[i][j], x[i], y);
        }
      }
    }
  }
  // The same of 16-bit numbers, Depth of a row; also(i, words) gets the rows i * 16 + ... of `a`, a
  // fragment at a time. Turned: lines of the tile have the numbers of one k, a row's (a column's
  // of b) being neighbours; Line: from one line to the next.
  template <int Depth, bool TurnedA, int LineA, bool TurnedB, int LineB, class T, class Also>
  __device__ __forceinline__ void add_halves(const T* a, const T* b, const Also& also) {
    static_assert(kN % 2 == 0 && Depth % 16 == 0);
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    // Four matrices are the quarters of 16 x 16 numbers; of `a` the second is below, of b beside.
    const int r = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
    const T* a_line = a + (TurnedA ? (third + r) * LineA + warp % kRowWarps * 32 + second
                                   : (warp % kRowWarps * 32 + second + r) * LineA + third);
    const T* b_line = b + (TurnedB ? (second + r) * LineB + warp / kRowWarps * kN * 8 + third
                                   : (warp / kRowWarps * kN * 8 + third + r) * LineB + second);
    constexpr int a_step = TurnedA ? 1 : LineA, a_next = TurnedA ? LineA : 1;
    constexpr int b_step = TurnedB ? 1 : LineB, b_next = TurnedB ? LineB : 1;
    [[maybe_unused]] constexpr int ahead = kM * kN < 16 ? 2 : 1;  // registers
#pragma unroll ahead
    for (int k = 0; k < Depth; k += 16) {
      HalfWord x[kM][4];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        load_matrices<TurnedA>(x[i], a_line + i * 16 * a_step + k * a_next);
        also(i, x[i]);
      }
#pragma unroll
      for (int j = 0; j < kN; j += 2) {
        HalfWord y[4];
        load_matrices<TurnedB>(y, b_line + j * 8 * b_step + k * b_next);
        const HalfWord first[2] = {y[0], y[1]}, next[2] = {y[2], y[3]};
#pragma unroll
        for (int i = 0; i < kM; ++i) {
          multiply_halves<T>(sums[i][j], x[i], first);
          multiply_halves<T>(sums[i][j + 1], x[i], next);
        }
      }
    }
  }
  // The same of any numbers, on CUDA cores.
  template <int StrideA = kStride<float>, int StrideB = kStride<float>>
  __device__ __forceinline__ void add_exceptional(const float* a, const float* b) {
#pragma unroll 1
    for (int k = 0; k < kDepth<float>; ++k) {
      visit([&](unsigned row, unsigned column, float& sum) {
        sum += a[row * StrideA + k] * b[column * StrideB + k];
      });
    }
  }
  template <int N>
  static __device__ __forceinline__ void take(const float (&values)[N], float (&high)[N],
                                              float (&low)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const SplitFloat parts = Split ? SplitFloat::of(values[n]) : SplitFloat{values[n], 0.0f};
      high[n] = parts.high;
      low[n] = parts.low;
    }
  }
  // The row of this lane's first sum of the i-th 16 rows of its warp.
  static __device__ __forceinline__ int first_row(int i) {
    return threadIdx.x / kLanes % kRowWarps * 32 + i * 16 + threadIdx.x % kLanes / 4;
  }
  static constexpr int kParts = kRowWarps * 8;
  template <int Line, class Body>
  __device__ __forceinline__ void column_sums(float* scratch, const Body& body) {
    const int warp = threadIdx.x / kLanes, g = threadIdx.x % kLanes / 4, t = threadIdx.x % 4;
    const int row = warp % kRowWarps * 32 + g, column = warp / kRowWarps * kN * 8 + 2 * t;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < kM; ++i) {
          total += body(row + i * 16, column + j * 8 + s, sums[i][j][s]);
          total += body(row + i * 16 + 8, column + j * 8 + s, sums[i][j][s + 2]);
        }
        scratch[(warp % kRowWarps * 8 + g) * Line + column + j * 8 + s] = total;
      }
    }
  }
  template <class Body>
  __device__ __forceinline__ void visit(const Body& body) {
    const int warp = threadIdx.x / kLanes, g = threadIdx.x % kLanes / 4, t = threadIdx.x % 4;
    const int row = warp % kRowWarps * 32 + g, column = warp / kRowWarps * kN * 8 + 2 * t;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          body(row + i * 16 + s / 2 * 8, column + j * 8 + s % 2, sums[i][j][s]);
        }
      }
    }
  }
};

template <class T, int Rows, int Columns>
using Product = std::conditional_t<sizeof(T) == 8, PlainProduct<Accumulate<T>, Rows, Columns>,
                                   TensorProduct<Rows, Columns, sizeof(T) == 4>>;

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
