// A matrix product of pieces that lie in the cache, for the CPU.
#pragma once

#include <algorithm>

#include "simd.h"
#include "tiles.h"

namespace densesiam {

// Element (i, j) at data[i * row + j * column].
template <class A>
struct Matrix {
  const A* data;
  std::int64_t row, column;
};

// Rows x Vectors accumulators in registers: out[i, j..] (+)= sum over k of a[i, k] * b[k, j..].
// Where Partial, only `lanes` elements of the vector exist.
template <int Rows, int Vectors, bool Partial, class V, class A>
DENSESIAM_HD void multiply_block(std::int64_t depth, const A* a, std::int64_t a_row,
                                 std::int64_t a_column, const A* b, std::int64_t b_row, A* out,
                                 std::int64_t out_row, int lanes, bool add) {
  constexpr int kLanes = sizeof(V) / sizeof(A);
  const std::size_t bytes = Partial ? std::size_t(lanes) * sizeof(A) : sizeof(V);
  V sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      sum[i][v] = V{};
      if (add) std::memcpy(&sum[i][v], out + i * out_row + v * kLanes, bytes);
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    V right[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      right[v] = V{};
      std::memcpy(&right[v], b + k * b_row + v * kLanes, bytes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const A left = a[i * a_row + k * a_column];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      std::memcpy(out + i * out_row + v * kLanes, &sum[i][v], bytes);
    }
  }
}

// All rows of one panel of columns.
template <int Rows, int Vectors, bool Partial, class V, class A>
DENSESIAM_HD void multiply_panel(std::int64_t rows, std::int64_t depth, Matrix<A> a, const A* b,
                                 std::int64_t b_row, A* out, std::int64_t out_row, int lanes,
                                 bool add) {
  std::int64_t i = 0;
  for (; i + Rows <= rows; i += Rows) {
    multiply_block<Rows, Vectors, Partial, V>(depth, a.data + i * a.row, a.row, a.column, b, b_row,
                                              out + i * out_row, out_row, lanes, add);
  }
  if constexpr (Rows > 1) {
    if (i < rows) {
      a.data += i * a.row;
      multiply_panel<Rows - 1, Vectors, Partial, V>(rows - i, depth, a, b, b_row, out + i * out_row,
                                                    out_row, lanes, add);
    }
  }
}

// out = a b, or out += a b: a is (rows, depth) with any strides, b (depth, columns) and out
// (rows, columns) have their columns side by side. The order of summation is that of depth.
template <class A>
void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, Matrix<A> a, const A* b,
              std::int64_t b_row, A* out, std::int64_t out_row, bool add) {
  vectorised([&](auto width) DENSESIAM_INLINE {
    constexpr int kLanes = width() / int(sizeof(A));
    // 24 of 32 registers accumulate, or 12 of 16.
    constexpr int kRows = 6, kVectors = width() == 64 ? 4 : 2;
    using V = Vector<A, kLanes>;
    std::int64_t j = 0;
    const auto panel = [&](auto vectors, auto partial) DENSESIAM_INLINE {
      multiply_panel<kRows, vectors(), partial(), V>(rows, depth, a, b + j, b_row, out + j, out_row,
                                                     int(columns - j), add);
      j += vectors() * kLanes;
    };
    while (j + kVectors * kLanes <= columns) {
      panel(std::integral_constant<int, kVectors>{}, std::false_type{});
    }
    while (j + kLanes <= columns) panel(std::integral_constant<int, 1>{}, std::false_type{});
    if (j < columns) panel(std::integral_constant<int, 1>{}, std::true_type{});
  });
}

}  // namespace densesiam
