// Product of two tiles in shared memory, on CUDA cores or tensor cores.
//
//   sums[row][column] += sum over k of a[row][k] b[column][k]
//
// Both tiles hold rows of K numbers with the stride kStride. kThreads threads share the Rows x
// Columns sums; visit() says which thread has which.
#pragma once

#include "block.cuh"

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
  A sums[kM][kN];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sums[i][j] = A(0);
    }
  }
  __device__ __forceinline__ void add(const A* a, const A* b) {
    constexpr int width = kPack<A>;
    const int row = threadIdx.x / kColumnThreads, column = threadIdx.x % kColumnThreads;
#pragma unroll 2
    for (int k = 0; k < kDepth<A>; k += width) {
      Pack<A, width> x[kM], y[kN];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        x[i] =
            *reinterpret_cast<const Pack<A, width>*>(a + (row + i * kRowThreads) * kStride<A> + k);
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        y[j] = *reinterpret_cast<const Pack<A, width>*>(
            b + (column + j * kColumnThreads) * kStride<A> + k);
      }
#pragma unroll
      for (int w = 0; w < width; ++w) {
#pragma unroll
        for (int i = 0; i < kM; ++i) {
#pragma unroll
          for (int j = 0; j < kN; ++j) sums[i][j] += x[i].values[w] * y[j].values[w];
        }
      }
    }
  }
  // scratch[part][column] = this thread's share of sum over rows of body(row, column, sum).
  static constexpr int kParts = kRowThreads;
  template <class Body>
  __device__ __forceinline__ void column_sums(A* scratch, const Body& body) {
    const int row = threadIdx.x / kColumnThreads, column = threadIdx.x % kColumnThreads;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      A total = A(0);
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        total += body(row + i * kRowThreads, column + j * kColumnThreads, sums[i][j]);
      }
      scratch[row * Columns + column + j * kColumnThreads] = total;
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

// On tensor cores, for tiles whose numbers came from half types.
template <int Rows, int Columns>
struct TensorProduct {
  using A = float;
  static constexpr int kRowWarps = Rows / 32, kColumnWarps = kWarps / kRowWarps;
  static constexpr int kM = 2, kN = Columns / kColumnWarps / 8;
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
  __device__ __forceinline__ void add(const float* a, const float* b) {
    const int warp = threadIdx.x / kLanes, g = threadIdx.x % kLanes / 4, t = threadIdx.x % 4;
    const float* a_rows = a + (warp % kRowWarps * 32 + g) * kStride<float> + t;
    const float* b_rows = b + (warp / kRowWarps * kN * 8 + g) * kStride<float> + t;
#pragma unroll
    for (int k = 0; k < kDepth<float>; k += 8) {
      float y[kN][2];
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        y[j][0] = round_to_tf32(b_rows[j * 8 * kStride<float> + k]);
        y[j][1] = round_to_tf32(b_rows[j * 8 * kStride<float> + k + 4]);
      }
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        const float* x = a_rows + i * 16 * kStride<float> + k;
        const float values[4] = {round_to_tf32(x[0]), round_to_tf32(x[8 * kStride<float>]),
                                 round_to_tf32(x[4]), round_to_tf32(x[8 * kStride<float> + 4])};
#pragma unroll
        for (int j = 0; j < kN; ++j) multiply_tf32(sums[i][j], values, y[j]);
      }
    }
  }
  static constexpr int kParts = kRowWarps * 8;
  template <class Body>
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
        scratch[(warp % kRowWarps * 8 + g) * Columns + column + j * 8 + s] = total;
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
using Product = std::conditional_t<sizeof(T) == 2, TensorProduct<Rows, Columns>,
                                   PlainProduct<Accumulate<T>, Rows, Columns>>;

}  // namespace DENSESIAM_TARGET
}  // namespace densesiam
