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

// The greatest of three integers; so many low bits, with their sign and without; a warp's sum.
extern "C" __global__ void integers(const int* x, int* out) {
  const int lane = threadIdx.x;
  out[lane] = max(max(x[lane], x[lane + 32]), x[lane + 64]);
  asm("szext.clamp.s32 %0, %1, %2;" : "=r"(out[lane + 32]) : "r"(x[lane]), "r"(x[lane + 96]));
  asm("szext.clamp.u32 %0, %1, %2;" : "=r"(out[lane + 64]) : "r"(x[lane]), "r"(x[lane + 96]));
#if __CUDA_ARCH__ >= 800
  if (lane % 2) out[lane + 96] = __reduce_add_sync(0xAAAAAAAAu, x[lane]);
#endif
}

// Which of two halves are no numbers.
extern "C" __global__ void halves_nan(const unsigned* x, unsigned* out) {
  unsigned low, high;
  asm("{ .reg .pred p, q; setp.nan.f16x2 p|q, %2, %2; selp.u32 %0, 1, 0, p; selp.u32 %1, 1, 0, q; }"
      : "=r"(low), "=r"(high)
      : "r"(x[threadIdx.x]));
  out[threadIdx.x] = low + 2 * high;
}

// Four matrices of 8 rows of 8 halves, 64 halves apart, copied to shared memory as they are and
// read as fragments: those of each matrix, then those of its transpose. The last lane copies zeros.
extern "C" __global__ void matrices(const unsigned* in, unsigned* out) {
  __shared__ __align__(16) unsigned rows[32 * 4];
  const unsigned lane = threadIdx.x;
  const unsigned at = unsigned(__cvta_generic_to_shared(rows + 4 * lane));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(in + 4 * lane),
               "r"(lane < 31 ? 16 : 0));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
  __syncwarp();
  unsigned r[8];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7])
               : "r"(at));
  for (int k = 0; k < 8; ++k) out[32 * k + lane] = r[k];
#if __CUDA_ARCH__ >= 900
  // And back, the transposed ones first: the matrices again.
  __syncwarp();
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(r[4]), "r"(r[5]), "r"(r[6]), "r"(r[7]));
  __syncwarp();
  for (int k = 0; k < 4; ++k) out[32 * (8 + k) + lane] = rows[32 * k + lane];
#endif
}
