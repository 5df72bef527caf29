// Kernels whose times on a GPU others have published: what `benchmarks.published` holds the model
// to. Written anew from their descriptions.
#include <cstdint>

// A tile of 32 x 32 goes through shared memory, whose rows are kStride apart; a thread moves
// 32 / kRows elements.
template <int kStride, int kRows>
__device__ __forceinline__ void transpose(const float* __restrict__ source,
                                          float* __restrict__ target, int size) {
  __shared__ float tile[32 * kStride];
  int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += kRows) {
    if (kRows < 32 || (x < size && y < size)) {
      tile[(threadIdx.y + j) * kStride + threadIdx.x] = source[(y + j) * size + x];
    }
  }
  __syncthreads();
  x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += kRows) {
    if (kRows < 32 || (x < size && y < size)) {
      target[(y + j) * size + x] = tile[threadIdx.x * kStride + threadIdx.y + j];
    }
  }
}

extern "C" __global__ void transpose_conflicts(const float* __restrict__ source,
                                               float* __restrict__ target, int size) {
  transpose<32, 32>(source, target, size);
}
extern "C" __global__ void transpose_padded(const float* __restrict__ source,
                                            float* __restrict__ target, int size) {
  transpose<33, 32>(source, target, size);
}
extern "C" __global__ void transpose_coarse2(const float* __restrict__ source,
                                             float* __restrict__ target, int size) {
  transpose<33, 16>(source, target, size);
}
extern "C" __global__ void transpose_coarse4(const float* __restrict__ source,
                                             float* __restrict__ target, int size) {
  transpose<33, 8>(source, target, size);
}

// Sum of one integer a thread: halves of the block are added in shared memory, then within a warp.
extern "C" __global__ void sum_block(const int* source, int* sum, std::uint64_t count) {
  constexpr int kThreads = 512;
  __shared__ int sums[kThreads];
  const int thread = threadIdx.x, i = blockIdx.x * kThreads + thread;
  int mine = 0;
  if (i < count) mine += source[i];
  sums[thread] = mine;
  __syncthreads();
#pragma unroll
  for (int active = kThreads / 2; active > 32; active /= 2) {
    if (thread < active) sums[thread] += sums[thread + active];
    __syncthreads();
  }
  volatile int* last = sums;
#pragma unroll
  for (int active = 32; active > 0; active /= 2) {
    if (thread < active) last[thread] += last[thread + active];
    __syncwarp();
  }
  if (thread == 0) atomicAdd(sum, last[0]);
}

// The same, of many integers a thread: kBatch neighbours of each.
extern "C" __global__ void sum_batches(const int* source, int* sum, std::uint64_t count) {
  constexpr int kThreads = 512, kBatch = 12;
  __shared__ int sums[kThreads];
  const int thread = threadIdx.x, first = (blockIdx.x * kThreads + thread) * kBatch;
  int mine = 0;
#pragma unroll
  for (int j = 0; j < kBatch; ++j) {
    if (first + j < count) mine += source[first + j];
  }
  sums[thread] = mine;
  __syncthreads();
#pragma unroll
  for (int active = kThreads / 2; active > 32; active /= 2) {
    if (thread < active) sums[thread] += sums[thread + active];
    __syncthreads();
  }
  volatile int* last = sums;
#pragma unroll
  for (int active = 32; active > 0; active /= 2) {
    if (thread < active) last[thread] += last[thread + active];
    __syncwarp();
  }
  if (thread == 0) atomicAdd(sum, last[0]);
}

// Sum in strides of the grid, one element or four at a time.
template <class Vector>
__device__ __forceinline__ void sum_strides(const int* __restrict__ source, int* __restrict__ sums,
                                            int count) {
  int mine = 0;
  const int stride = blockDim.x * gridDim.x;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    if constexpr (sizeof(Vector) == 16) {
      const int4 four = reinterpret_cast<const int4*>(source)[i];
      mine += four.x + four.y + four.z + four.w;
    } else {
      mine += source[i];
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) mine += __shfl_down_sync(~0u, mine, step);
  __shared__ int warps[32];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x % 32] : 0;
  if (threadIdx.x < 32) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) mine += __shfl_down_sync(~0u, mine, step);
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = mine;
}

extern "C" __global__ void sum_strides1(const int* __restrict__ source, int* __restrict__ sums,
                                        int count) {
  sum_strides<int>(source, sums, count);
}
extern "C" __global__ void sum_strides4(const int* __restrict__ source, int* __restrict__ sums,
                                        int count) {
  sum_strides<int4>(source, sums, count);
}
