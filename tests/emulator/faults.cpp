// Kernels with one planted bug each, and their sound twins: the emulator must tell them apart.
#include <functional>

#include "kernels.h"
// After kernels.h, which turns the helpers' hooks on.
#include "../../csrc/cuda/device/products.cuh"

namespace {

using densesiam::load;

constexpr unsigned kAll = ~0u;
alignas(16) const float zeros[4] = {};

// Some threads of the block never reach the barrier.
__global__ void barrier_in_branch(float* out, bool bug) {
  if (!bug || threadIdx.x < 16) __syncthreads();
  out[threadIdx.x] = 1;
}

// Half of the threads wait at one barrier, half at another.
__global__ void two_barriers(float* out, bool bug) {
  if (!bug || threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

// Lanes named by the mask have left.
__global__ void lane_missing(float* out, bool bug) {
  if (bug && threadIdx.x >= 16) return;
  out[threadIdx.x] = __shfl_xor_sync(kAll, float(threadIdx.x), 1);
}

// A lane calls with a mask that does not name it.
__global__ void caller_not_in_mask(float* out, bool bug) {
  out[threadIdx.x] = __shfl_xor_sync(bug ? kAll - 1 : kAll, float(threadIdx.x), 1);
}

// A lane reads from one that the mask does not name.
__global__ void source_not_in_mask(float* out, bool bug) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(0xffffu, float(threadIdx.x), bug ? 20 : 10);
  }
}

// A warp waits for a lane that waits for the block.
__global__ void warp_against_block(float* out, bool bug) {
  if (bug && threadIdx.x == 0) __syncthreads();
  out[threadIdx.x] = __ballot_sync(kAll, true);
  if (!bug || threadIdx.x != 0) __syncthreads();
}

__global__ void too_much_shared(float* out, bool bug) {
  const int bytes = bug ? (48 << 10) + 4 : 48 << 10;
  DENSESIAM_SHARED(float, values, bytes / sizeof(float));
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[threadIdx.x];
}

// Shared memory is read before anything was written.
__global__ void uninitialised_shared(float* out, bool bug) {
  DENSESIAM_SHARED(float, values, 64);
  if (!bug) values[threadIdx.x] = 0;
  out[threadIdx.x] = values[threadIdx.x];
}

// A thread reads what another writes, with no barrier between.
__global__ void missing_barrier(float* out, bool bug) {
  DENSESIAM_SHARED(float, values, 64);
  values[threadIdx.x] = float(threadIdx.x);
  if (!bug) __syncthreads();
  const float value = values[63 - threadIdx.x];
  if (blockIdx.x == 0) out[threadIdx.x] = value;
}

// A tile is written anew while other threads still read the last one.
__global__ void missing_second_barrier(float* out, bool bug) {
  DENSESIAM_SHARED(float, tile, 64);
  float sum = 0;
  for (int step = 0; step < 3; ++step) {
    tile[threadIdx.x] = float(step + threadIdx.x);
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if (!bug) __syncthreads();
  }
  if (blockIdx.x == 0) out[threadIdx.x] = sum;
}

// A lane reads what another of its warp writes. A shuffle waits for the lanes, not for memory.
__global__ void shuffle_for_syncwarp(float* out, bool bug) {
  DENSESIAM_SHARED(float, values, 64);
  values[threadIdx.x] = float(threadIdx.x);
  if (bug) {
    __shfl_xor_sync(kAll, 0, 1);
  } else {
    __syncwarp();
  }
  const float value = values[threadIdx.x ^ 1];
  if (blockIdx.x == 0) out[threadIdx.x] = value;
}

// Half of the lanes wait for each other, and read what the other half writes.
__global__ void syncwarp_without_a_lane(float* out, bool bug) {
  DENSESIAM_SHARED(float, values, 64);
  values[threadIdx.x] = float(threadIdx.x);
  __syncwarp(threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u);
  const float value = values[threadIdx.x ^ (bug ? 16 : 8)];
  if (blockIdx.x == 0) out[threadIdx.x] = value;
}

// A warp waits for itself, and reads what another warp writes.
__global__ void syncwarp_for_block(float* out, bool bug) {
  DENSESIAM_SHARED(float, values, 64);
  values[threadIdx.x] = float(threadIdx.x);
  if (bug) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  const float value = values[63 - threadIdx.x];
  if (blockIdx.x == 0) out[threadIdx.x] = value;
}

// A thread reads what it copies before it has waited for it.
__global__ void copy_not_waited_for(float* out, bool bug) {
  DENSESIAM_SHARED(densesiam::Words, words, 64);
  densesiam::start_copy(words + threadIdx.x, reinterpret_cast<const densesiam::Words*>(zeros));
  if (!bug) densesiam::wait_for_copies();
  out[threadIdx.x] = reinterpret_cast<const float*>(words + threadIdx.x)[3];
  densesiam::wait_for_copies();
}

__global__ void copy_of_a_thread_that_ends(float* out, bool bug) {
  DENSESIAM_SHARED(densesiam::Words, words, 64);
  densesiam::start_copy(words + threadIdx.x, reinterpret_cast<const densesiam::Words*>(zeros));
  if (!bug) densesiam::wait_for_copies();
  out[threadIdx.x] = 1;
}

__global__ void misaligned_copy(float* out, bool bug) {
  DENSESIAM_SHARED(densesiam::Words, words, 65);
  auto* const to = reinterpret_cast<char*>(words + threadIdx.x) + (bug ? 4 : 0);
  densesiam::start_copy(reinterpret_cast<densesiam::Words*>(to),
                        reinterpret_cast<const densesiam::Words*>(zeros));
  densesiam::wait_for_copies();
  out[threadIdx.x] = 1;
}

// A tile is copied to while other threads may still read it.
__global__ void copy_over_what_is_read(float* out, bool bug) {
  DENSESIAM_SHARED(densesiam::Words, words, 64);
  words[threadIdx.x] = {};
  __syncthreads();
  const auto value = words[63 - threadIdx.x].values[0];
  if (!bug) __syncthreads();
  densesiam::start_copy(words + threadIdx.x, reinterpret_cast<const densesiam::Words*>(zeros));
  densesiam::wait_for_copies();
  if (blockIdx.x == 0) out[threadIdx.x] = float(value);
}

// A thread reads what another has copied and waited for, with no barrier between.
__global__ void copy_without_barrier(float* out, bool bug) {
  DENSESIAM_SHARED(densesiam::Words, words, 64);
  densesiam::start_copy(words + threadIdx.x, reinterpret_cast<const densesiam::Words*>(zeros));
  densesiam::wait_for_copies();
  if (!bug) __syncthreads();
  const auto value = words[63 - threadIdx.x].values[0];
  if (blockIdx.x == 0) out[threadIdx.x] = float(value);
}

__global__ void misaligned_matrix(float* out, bool bug) {
  DENSESIAM_SHARED(densesiam::half, rows, 32 * 8 + 1);
  for (int n = 0; n < 8; ++n) rows[threadIdx.x % 32 * 8 + n] = {};
  __syncthreads();
  unsigned words[4];
  densesiam::load_matrices<false>(words, rows + threadIdx.x % 32 * 8 + (bug ? 1 : 0));
  out[threadIdx.x] = float(words[0]);
}

// Lanes read rows of matrices that another warp writes.
__global__ void matrix_without_barrier(float* out, bool bug) {
  DENSESIAM_SHARED(densesiam::half, rows, 64 * 8);
  for (int n = 0; n < 8; ++n) rows[threadIdx.x * 8 + n] = {};
  if (bug) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  unsigned words[4];
  densesiam::load_matrices<false>(words, rows + (63 - threadIdx.x) * 8);
  if (blockIdx.x == 0) out[threadIdx.x] = float(words[0]);
}

// No bug: the first warp loads four matrices, the second their transposes, and each lane tells one
// number of matrix M: number n of 256 has the value n.
template <int M, int High>
__global__ void matrices(float* out, bool) {
  DENSESIAM_SHARED(densesiam::half, rows, 32 * 8);
  if (threadIdx.x < 32) {
    for (unsigned n = 0; n < 8; ++n) {
      rows[threadIdx.x * 8 + n] = {std::uint16_t(threadIdx.x * 8 + n)};
    }
  }
  __syncthreads();
  unsigned words[4];
  const auto* const row = rows + threadIdx.x % 32 * 8;
  if (threadIdx.x < 32) {
    densesiam::load_matrices<false>(words, row);
  } else {
    densesiam::load_matrices<true>(words, row);
  }
  if (blockIdx.x == 0) out[threadIdx.x] = float(words[M] >> 16 * High & 0xffff);
}

// No bug: the first warp tells the products of float16, the second those of bfloat16, of the rows
// Row and Row + 8, two columns a lane: a[i][k] = i + k / 4, b[k][j] = k - 2 j.
template <class T, int Part>
__device__ float product_part() {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
  const auto pair = [](float x, float y) { return densesiam::packed<T>(x, y); };
  unsigned a[4], b[2];
  for (int n = 0; n < 4; ++n) {
    const int i = g + n % 2 * 8, k = t + n / 2 * 8;
    a[n] = pair(i + k / 4.0f, i + (k + 1) / 4.0f);
  }
  for (int n = 0; n < 2; ++n) {
    const int k = t + n * 8;
    b[n] = pair(k - 2 * g, k + 1 - 2 * g);
  }
  float c[4] = {1, 1, 1, 1};
  densesiam::multiply_halves<T>(c, a, b);
  return c[Part];
}
template <int Part>
__global__ void product(float* out, bool) {
  float value = 0;
  if (threadIdx.x < 32) {
    value = product_part<densesiam::half, Part>();
  } else {
    value = product_part<densesiam::bfloat16, Part>();
  }
  if (blockIdx.x == 0) out[threadIdx.x] = value;
}

// Two blocks write one cell.
__global__ void blocks_write_one_cell(float* out, bool bug) {
  const unsigned cell = bug ? threadIdx.x / 2 : blockIdx.x * 32 + threadIdx.x / 2;
  if (threadIdx.x % 2 == 0) densesiam::store(out + cell, 1.0f);
}

// Counters are set to 0 by one thread and added to by all, with no barrier between.
__global__ void atomics_before_barrier(float* out, bool bug) {
  DENSESIAM_SHARED(unsigned, counts, 2);
  if (threadIdx.x < 2) counts[threadIdx.x] = 0;
  if (!bug) __syncthreads();
  atomicAdd(counts + threadIdx.x % 2, 1u);
  __syncthreads();
  if (blockIdx.x == 0) out[threadIdx.x] = float(counts[threadIdx.x % 2]);
}

// Two threads write the halves of one word: sound. The same half: not.
__global__ void neighbouring_bytes(float* out, bool bug) {
  DENSESIAM_SHARED(unsigned short, values, 64);
  values[bug ? threadIdx.x / 2 * 2 : threadIdx.x] = threadIdx.x;
  if (blockIdx.x == 0) out[threadIdx.x] = 1;
}

// The result depends on which block comes first.
__global__ void order_of_blocks(float* out, bool bug) {
  if (bug) {
    out[threadIdx.x] = out[threadIdx.x] * 2 + float(blockIdx.x);
  } else if (blockIdx.x == 0) {
    out[threadIdx.x] = 1;
  }
}

__global__ void misaligned(float* out, bool bug) {
  out[threadIdx.x] = load<4>(out + (bug ? 1 : 0)).values[0];
}

__global__ void beyond_shared(float* out, bool bug) {
  DENSESIAM_SHARED(float, values, 64);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + (bug ? 1 : 0)];
}

__global__ void beyond_global(float* out, bool bug) {
  densesiam::store(out + threadIdx.x + (bug ? 1 : 0), 1.0f);
}

__global__ void shift_too_far(float* out, bool bug) {
  out[threadIdx.x] = float(1u << (threadIdx.x % 32 + (bug ? 1 : 0)));
}

__global__ void signed_overflow(float* out, bool bug) {
  out[threadIdx.x] = float(int(threadIdx.x) * (bug ? 1 << 30 : 1));
}

__global__ void nothing(float*, bool) {}

const std::map<std::string, void (*)(float*, bool)> kKernels = {
    {"barrier_in_branch", barrier_in_branch},
    {"two_barriers", two_barriers},
    {"lane_missing", lane_missing},
    {"caller_not_in_mask", caller_not_in_mask},
    {"source_not_in_mask", source_not_in_mask},
    {"warp_against_block", warp_against_block},
    {"too_much_shared", too_much_shared},
    {"uninitialised_shared", uninitialised_shared},
    {"missing_barrier", missing_barrier},
    {"missing_second_barrier", missing_second_barrier},
    {"shuffle_for_syncwarp", shuffle_for_syncwarp},
    {"syncwarp_without_a_lane", syncwarp_without_a_lane},
    {"syncwarp_for_block", syncwarp_for_block},
    {"copy_not_waited_for", copy_not_waited_for},
    {"copy_of_a_thread_that_ends", copy_of_a_thread_that_ends},
    {"misaligned_copy", misaligned_copy},
    {"copy_over_what_is_read", copy_over_what_is_read},
    {"copy_without_barrier", copy_without_barrier},
    {"misaligned_matrix", misaligned_matrix},
    {"matrix_without_barrier", matrix_without_barrier},
    {"matrices_0", matrices<0, 0>},
    {"matrices_1", matrices<1, 1>},
    {"matrices_2", matrices<2, 0>},
    {"matrices_3", matrices<3, 1>},
    {"product_0", product<0>},
    {"product_1", product<1>},
    {"product_2", product<2>},
    {"product_3", product<3>},
    {"blocks_write_one_cell", blocks_write_one_cell},
    {"atomics_before_barrier", atomics_before_barrier},
    {"neighbouring_bytes", neighbouring_bytes},
    {"order_of_blocks", order_of_blocks},
    {"misaligned", misaligned},
    {"beyond_shared", beyond_shared},
    {"beyond_global", beyond_global},
    {"shift_too_far", shift_too_far},
    {"signed_overflow", signed_overflow},
    {"empty_grid", nothing},
};

std::string last_error;

}  // namespace

// Launches a kernel on 2 blocks of 64 threads; 64 numbers come back. Returns the emulator's error,
// or null.
extern "C" __attribute__((visibility("default"))) const char* run_fault(const char* kernel,
                                                                        bool bug, float* result) {
  // Exactly as long as the kernels need, so that AddressSanitizer sees one more.
  const std::unique_ptr<float, void (*)(void*)> out(
      static_cast<float*>(std::aligned_alloc(16, 64 * sizeof(float))), std::free);
  std::fill(out.get(), out.get() + 64, 0.0f);
  try {
    const bool empty = bug && std::string(kernel) == "empty_grid";
    densesiam::launch(kKernels.at(kernel), dim3(empty ? 0 : 2), dim3(64), 0, nullptr, out.get(),
                      bug);
  } catch (const std::exception& error) {
    last_error = error.what();
    return last_error.c_str();
  }
  std::copy(out.get(), out.get() + 64, result);
  return nullptr;
}
