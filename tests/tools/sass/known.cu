// Kernels of which one can say by hand what a GPU does with them.

// 32 lanes write a row and read a column of a tile whose rows are kStride words apart.
template <int kStride>
__device__ __forceinline__ void column(float* out) {
  __shared__ float tile[32 * kStride];
  for (int row = 0; row < 32; ++row) tile[row * kStride + threadIdx.x] = float(row);
  __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x * kStride + 5];
}
extern "C" __global__ void unpadded(float* out) { column<32>(out); }
extern "C" __global__ void padded(float* out) { column<33>(out); }

// Two lanes a bank in each of 16 rows: 16 words of every second bank.
extern "C" __global__ void sixteen_ways(float* out, int stride) {
  __shared__ float words[1024];
  for (int i = threadIdx.x; i < 1024; i += 32) words[i] = float(i);
  __syncwarp();
  out[threadIdx.x] = words[threadIdx.x * stride];
}

// Lane l goes round the loop l times: a warp as often as its last lane.
extern "C" __global__ void divergent(int* out) {
  int sum = 0;
#pragma unroll 1
  for (int i = 0; i < int(threadIdx.x); ++i) sum ^= sum * 5 + i;
  out[threadIdx.x] = sum;
}

// Both halves of a warp do something else, and meet again.
extern "C" __global__ void halves(const int* in, int* out) {
  int value = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
#pragma unroll 1
    for (int i = 0; i < 10; ++i) value = value * 7 + i;
  } else {
#pragma unroll 1
    for (int i = 0; i < 20; ++i) value = value * 9 - i;
  }
  out[threadIdx.x] = value + __shfl_xor_sync(~0u, value, 16);
}

// Every second element: two sectors where one would do.
extern "C" __global__ void strided(const float* in, float* out) {
  out[blockIdx.x * 32 + threadIdx.x] = in[2 * (blockIdx.x * 32 + threadIdx.x)];
}

// Each lane's word is in the bank of the first one's.
extern "C" __global__ void one_bank(float* out) { out[threadIdx.x * 32] = 1; }

// The least and the greatest of three, as floats and as integers; NaN is no number.
extern "C" __global__ void extremes(const float* x, float* f, const unsigned* i, unsigned* u) {
  const int lane = threadIdx.x;
  const float a = x[lane], b = x[lane + 32], c = x[lane + 64];
  f[lane] = fmaxf(fmaxf(a, b), c);
  f[lane + 32] = fminf(fminf(a, b), c);
  u[lane] = max(i[lane], i[lane + 32]);
  u[lane + 32] = unsigned(min(int(i[lane]), int(i[lane + 32])));
}
