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

// Four 8 x 8 matrices of 16-bit numbers, as ldmatrix hands them out; rows are kStride numbers
// apart.
template <int kStride, bool kTransposed>
__device__ __forceinline__ void fragments(const unsigned short* in, uint4* out) {
  __shared__ __align__(16) unsigned short rows[32 * kStride];
  for (int n = 0; n < 8; ++n) rows[threadIdx.x * kStride + n] = in[threadIdx.x * 8 + n];
  __syncwarp();
  const auto at = unsigned(__cvta_generic_to_shared(rows + threadIdx.x * kStride));
  uint4 got;
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(got.x), "=r"(got.y), "=r"(got.z), "=r"(got.w)
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(got.x), "=r"(got.y), "=r"(got.z), "=r"(got.w)
                 : "r"(at)
                 : "memory");
  }
  out[threadIdx.x] = got;
}
extern "C" __global__ void rows_72(const unsigned short* in, uint4* out) {
  fragments<72, false>(in, out);
}
extern "C" __global__ void columns_72(const unsigned short* in, uint4* out) {
  fragments<72, true>(in, out);
}
extern "C" __global__ void rows_64(const unsigned short* in, uint4* out) {
  fragments<64, false>(in, out);
}
// The first two of them.
extern "C" __global__ void two_matrices(const unsigned short* in, uint4* out) {
  __shared__ __align__(16) unsigned short rows[16 * 8];
  for (int n = 0; n < 4; ++n) rows[threadIdx.x * 4 + n] = in[threadIdx.x * 4 + n];
  __syncwarp();
  const auto at = unsigned(__cvta_generic_to_shared(rows + threadIdx.x % 16 * 8));
  uint4 got = {};
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(got.x), "=r"(got.y)
               : "r"(at)
               : "memory");
  out[threadIdx.x] = got;
}

// c = a b, a 16 x 16, b 16 x 8 and c 16 x 8, in lines.
#define PRODUCT(name, type)                                                                     \
  extern "C" __global__ void name(const unsigned short* a, const unsigned short* b, float* c) { \
    const int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;                                     \
    unsigned x[4], y[2];                                                                        \
    float s[4] = {};                                                                            \
    for (int n = 0; n < 4; ++n) {                                                               \
      const int first = (g + n % 2 * 8) * 16 + t + n / 2 * 8;                                   \
      x[n] = a[first] | unsigned(a[first + 1]) << 16;                                           \
    }                                                                                           \
    for (int n = 0; n < 2; ++n) {                                                               \
      const int first = (t + n * 8) * 8 + g;                                                    \
      y[n] = b[first] | unsigned(b[first + 8]) << 16;                                           \
    }                                                                                           \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                  \
        ".f32 "                                                                                 \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                       \
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])                                        \
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));                    \
    for (int n = 0; n < 4; ++n) c[(g + n / 2 * 8) * 8 + t + n % 2] = s[n];                      \
  }
PRODUCT(float16_product, "f16")
PRODUCT(bfloat16_product, "bf16")

// Each lane copies 16 bytes and reads what its neighbour copied; `early`, before it is there.
template <bool kEarly>
__device__ __forceinline__ void copied(const uint4* in, uint4* out) {
  __shared__ uint4 rows[32];
  const auto at = unsigned(__cvta_generic_to_shared(rows + threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(at), "l"(in + threadIdx.x)
               : "memory");
  if (!kEarly) asm volatile("cp.async.wait_all;" : : : "memory");
  __syncthreads();
  const uint4 got = rows[threadIdx.x ^ 1];
  if (kEarly) asm volatile("cp.async.wait_all;" : : : "memory");
  out[threadIdx.x] = got;
}
extern "C" __global__ void copied_in_time(const uint4* in, uint4* out) { copied<false>(in, out); }
extern "C" __global__ void read_too_early(const uint4* in, uint4* out) { copied<true>(in, out); }

// Of two groups of copies the first is waited for.
extern "C" __global__ void copied_in_groups(const uint4* in, uint4* out) {
  __shared__ uint4 rows[64];
  for (unsigned n = threadIdx.x; n < 64; n += 32) {
    const auto at = unsigned(__cvta_generic_to_shared(rows + n));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(at), "l"(in + n) : "memory");
    asm volatile("cp.async.commit_group;" : : : "memory");
  }
  asm volatile("cp.async.wait_group 1;" : : : "memory");
  const uint4 first = rows[threadIdx.x], second = rows[threadIdx.x + 32];
  asm volatile("cp.async.wait_all;" : : : "memory");
  out[threadIdx.x] = first;
  out[threadIdx.x + 32] = second;
}

// Sums, products and both of pairs of floats: of two pairs, a pair and a number, a pair turned
// round, a pair of two signs.
extern "C" __global__ void pairs(const float2* x, float2* out, float all) {
#if __CUDA_ARCH__ >= 1000
  const float2 a = x[threadIdx.x], b = x[threadIdx.x + 32], c = x[threadIdx.x + 64];
  float2* to = out + threadIdx.x;
  to[0] = __fadd2_rn(a, make_float2(-b.x, -b.y));
  to[32] = __fadd2_rn(a, make_float2(0.5f, 0.5f));
  to[64] = __fadd2_rn(make_float2(fabsf(a.x), fabsf(a.y)), make_float2(b.y, b.y));
  to[96] = __fmul2_rn(a, b);
  to[128] = __fmul2_rn(a, make_float2(all, all));
  to[160] = __fmul2_rn(a, make_float2(3.f, 4.f));
  to[192] = __ffma2_rn(a, b, c);
  to[224] = __ffma2_rn(a, make_float2(b.x, b.x), make_float2(-2.f, -2.f));
  to[256] = __fadd2_rn(a, make_float2(b.y, b.x));
  to[288] = __fadd2_rn(a, make_float2(b.x, -b.y));
  to[320] = __fadd2_rn(a, make_float2(-b.y, b.x));
#endif
}

// Both halves of a register, each added to a float; the second once more as a bfloat16.
extern "C" __global__ void half_and_float(const unsigned* halves, const float* x, float* out) {
#if __CUDA_ARCH__ >= 1000
  const unsigned both = halves[threadIdx.x];
  asm("add.f32.f16 %0, %1, %2;"
      : "=f"(out[threadIdx.x])
      : "h"((unsigned short)both), "f"(-x[threadIdx.x]));
  asm("add.f32.f16 %0, %1, %2;"
      : "=f"(out[threadIdx.x + 32])
      : "h"((unsigned short)(both >> 16)), "f"(x[threadIdx.x]));
  asm("add.f32.bf16 %0, %1, %2;"
      : "=f"(out[threadIdx.x + 64])
      : "h"((unsigned short)(both >> 16)), "f"(x[threadIdx.x]));
#endif
}

// The least and the greatest of a warp, or of its odd lanes: as whole numbers of either kind, and
// as floats, where what is no number is left out or stays.
extern "C" __global__ void extremes_of_warps(const unsigned* x, unsigned* out) {
  const unsigned lane = threadIdx.x % 32, value = x[threadIdx.x];
  unsigned* to = out + 8 * threadIdx.x;
  if (lane % 2) to[0] = __reduce_max_sync(0xAAAAAAAAu, value);
  to[1] = __reduce_min_sync(~0u, value);
  to[2] = __reduce_max_sync(~0u, int(value));
  to[3] = __reduce_min_sync(~0u, int(value));
#ifdef __CUDA_ARCH_FEAT_SM100_ALL
  asm volatile("redux.sync.max.f32 %0, %1, 0xffffffff;" : "=r"(to[4]) : "r"(value));
  asm volatile("redux.sync.min.f32 %0, %1, 0xffffffff;" : "=r"(to[5]) : "r"(value));
  asm volatile("redux.sync.max.NaN.f32 %0, %1, 0xffffffff;" : "=r"(to[6]) : "r"(value));
  if (lane % 2)
    asm volatile("redux.sync.min.NaN.f32 %0, %1, 0xaaaaaaaa;" : "=r"(to[7]) : "r"(value));
#endif
}

// An array that is indexed at run time has no registers: written one by one and read in another
// order.
extern "C" __global__ void indexed(const int* x, int* out) {
  const int lane = threadIdx.x;
  int words[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) words[i] = x[32 * lane + i];
  words[lane & 31] = -1;
#pragma unroll 1
  for (int i = 0; i < 32; ++i) out[32 * lane + i] = words[(i * 7 + lane) & 31];
}

// A float rounded to a bfloat16.
extern "C" __global__ void rounded(const float* x, unsigned* out) {
#if __CUDA_ARCH__ >= 800
  unsigned short value;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(value) : "f"(x[threadIdx.x]));
  out[threadIdx.x] = value;
#endif
}
