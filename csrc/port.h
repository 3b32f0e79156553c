/* port.h: one kernel text for three instruction sets and two machines. Layer T.
 *
 * A kernel says once what happens to one row (or to one chunk of a fixed size):
 *
 *   ROW_KERNEL(scale) { EACH(i, a->n) a->y[row * a->n + i] *= a->factor; }
 *
 * `a` is its llm_scale_args, `row` the row's number. EACH runs over elements that do not depend on
 * each other (EACH_OF over those of a few equal parts), ROW_SUM and ROW_MAX reduce over a row,
 * COLUMN_SUM sums many rows into one, ONCE guards what one thread does, SYNC stands
 * between reading an element and another thread's writing it. The C compiler makes plain loops,
 * built for each instruction set without fast-math: a reduction has 16 fixed lanes and a fixed
 * tree, so every set gives the same bits. CUDA makes one block per row (NVRTC: -default-device). */
#ifndef LLM_PORT_H
#define LLM_PORT_H

#ifdef __CUDACC_RTC__
typedef long long int64_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned short uint16_t;
typedef unsigned char uint8_t;
typedef int llm_status; /* NVRTC has no headers: what train.h needs of llm.h */
typedef struct llm_error llm_error;
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif

#include "numeric.h"

#ifdef __CUDACC__

#define PORT_INLINE static __device__ __forceinline__
#define PORT_METHOD __device__ __forceinline__
#define ROW_KERNEL(name)                                                                           \
  static __device__ void name##_row(const llm_##name##_args *a, int64_t row);                      \
  extern "C" __global__ void name##_kernel(const llm_##name##_args args, int64_t n_rows) {         \
    for (int64_t row = blockIdx.x; row < n_rows; row += gridDim.x) name##_row(&args, row);         \
  }                                                                                                \
  static __device__ void name##_row(const llm_##name##_args *a, int64_t row)
#define EACH(i, n) for (int64_t i = threadIdx.x; i < (n); i += blockDim.x)
#define EACH_OF(j, n_j, i, n_i)                                                                    \
  for (uint32_t i = 0, j = 0, at_ = threadIdx.x;                                                   \
       at_ < (uint32_t)((n_j) * (n_i)) &&                                                          \
       (j = at_ / (uint32_t)(n_i), i = at_ % (uint32_t)(n_i), true);                               \
       at_ += blockDim.x)
#define COLUMN_SUM(sum, i, n, part, begin, end, expr)                                              \
  EACH(i, n) {                                                                                     \
    float sum_ = 0.0f;                                                                             \
    for (int64_t part = begin; part < (end); part++) sum_ += expr;                                 \
    (sum)[i] = sum_;                                                                               \
  }
#define READ_AHEAD 8 /* what is read at once of a list that a thread goes through */
#define ONCE       if (threadIdx.x == 0)
#define SYNC       __syncthreads()
#define ROW_REDUCE(type, result, i, n, expr, zero, join)                                           \
  type result = zero;                                                                              \
  for (int64_t i = threadIdx.x; i < (n); i += blockDim.x) result = join(result, expr);             \
  {                                                                                                \
    __shared__ type lane_[32];                                                                     \
    for (int s_ = 16; s_; s_ /= 2)                                                                 \
      result = join(result, __shfl_xor_sync(0xffffffffu, result, s_));                             \
    if (threadIdx.x % 32 == 0) lane_[threadIdx.x / 32] = result;                                   \
    __syncthreads();                                                                               \
    result = zero;                                                                                 \
    for (int w_ = 0; w_ < (int)blockDim.x / 32; w_++) result = join(result, lane_[w_]);            \
    __syncthreads();                                                                               \
  }
#define port_log(x) log(x)
PORT_INLINE uint32_t port_bits(float x) { return __float_as_uint(x); }
PORT_INLINE float port_float(uint32_t bits) { return __uint_as_float(bits); }

#else

#define PORT_INLINE static inline __attribute__((always_inline))
#define PORT_METHOD inline
#define READ_AHEAD  1
#define ONCE
#define SYNC
#if defined(__clang__)
#define EACH(i, n) for (int64_t i = 0; i < (n); i++)
#else
#define EACH(i, n) _Pragma("GCC ivdep") for (int64_t i = 0; i < (n); i++)
#endif
#define EACH_OF(j, n_j, i, n_i)                                                                    \
  for (int64_t j = 0; j < (n_j); j++) EACH(i, n_i)
#define COLUMN_SUM(sum, i, n, part, begin, end, expr)                                              \
  {                                                                                                \
    EACH(i, n)(sum)[i] = 0.0f;                                                                     \
    for (int64_t part = begin; part < (end); part++) EACH(i, n)(sum)[i] += expr;                   \
  }
/* Lane l takes i = l, l + 16, ...; then lane[l] joins lane[l + 8], + 4, + 2, + 1. */
#define ROW_REDUCE(type, result, i, n, expr, zero, join)                                           \
  type result;                                                                                     \
  {                                                                                                \
    type lane_[16];                                                                                \
    for (int l_ = 0; l_ < 16; l_++) lane_[l_] = zero;                                              \
    int64_t base_ = 0;                                                                             \
    for (; base_ + 16 <= (n); base_ += 16)                                                         \
      for (int l_ = 0; l_ < 16; l_++) {                                                            \
        const int64_t i = base_ + l_;                                                              \
        lane_[l_] = join(lane_[l_], expr);                                                         \
      }                                                                                            \
    for (int64_t i = base_; i < (n); i++) lane_[i - base_] = join(lane_[i - base_], expr);         \
    for (int s_ = 8; s_; s_ /= 2)                                                                  \
      for (int l_ = 0; l_ < s_; l_++) lane_[l_] = join(lane_[l_], lane_[l_ + s_]);                 \
    result = lane_[0];                                                                             \
  }
#define port_log(x) num_log(x)
PORT_INLINE uint32_t port_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
PORT_INLINE float port_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* Instruction sets: train_ops.h runs the build of the handle's set. */
typedef void (*port_rows)(const void *args, int64_t begin, int64_t end);

#define PORT_BUILD(name, isa, target)                                                              \
  target static void name##_##isa(const void *p, int64_t begin, int64_t end) {                     \
    const llm_##name##_args args = *(const llm_##name##_args *)p;                                  \
    for (int64_t row = begin; row < end; row++) name##_row(&args, row);                            \
  }
#if defined(__x86_64__)
#define TARGET_AVX2   __attribute__((target("avx2,fma")))
#define TARGET_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#define TARGET_AVX512_BF16                                                                         \
  __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define TARGET_AMX                                                                                 \
  __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-bf16")))
#define PORT_BUILDS(name)                                                                          \
  PORT_BUILD(name, scalar, )                                                                       \
  PORT_BUILD(name, avx2, TARGET_AVX2)                                                              \
  PORT_BUILD(name, avx512, TARGET_AVX512)                                                          \
  static const port_rows name##_builds[] = {name##_scalar, name##_avx2, name##_avx512};
#else
#define PORT_BUILDS(name)                                                                          \
  PORT_BUILD(name, scalar, )                                                                       \
  static const port_rows name##_builds[] = {name##_scalar};
#endif

/* A row kernel and its public function. */
#define ROW_KERNEL(name)                                                                           \
  PORT_INLINE void name##_row(const llm_##name##_args *a, int64_t row);                            \
  PORT_BUILDS(name)                                                                                \
  void llm_ops_##name(llm_ops *ops, const llm_##name##_args *args, int64_t n_rows) {               \
    ops_run_rows(ops, name##_builds, args, n_rows);                                                \
  }                                                                                                \
  PORT_INLINE void name##_row(const llm_##name##_args *a, int64_t row)

#endif

PORT_INLINE float port_add(float x, float y) { return x + y; }
#define ROW_SUM(result, i, n, expr) ROW_REDUCE(float, result, i, n, expr, 0.0f, port_add)

/* The maximum goes over integers in the order of the floats (its own inverse), because compilers
 * leave float maxima scalar. A positive NaN is the largest. n >= 1. */
PORT_INLINE int32_t port_order(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }
PORT_INLINE int32_t port_max(int32_t x, int32_t y) { return x > y ? x : y; }
#define ROW_MAX(result, i, n, expr)                                                                \
  ROW_REDUCE(int32_t, result##_, i, n, port_order((int32_t)port_bits(expr)), (int32_t)0x80000000u, \
             port_max)                                                                             \
  const float result = port_float((uint32_t)port_order(result##_))

/* To bfloat16, ties to even; NaN stays NaN. */
PORT_INLINE uint16_t port_bf16(float x) {
  const uint32_t bits = port_bits(x), quiet = bits >> 16 | 0x40;
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (uint16_t)(x == x ? rounded : quiet);
}

#ifdef PORT_BF16 /* C++ */
struct llm_act {
  uint16_t bits;
  PORT_METHOD operator float() const { return port_float((uint32_t)bits << 16); }
  PORT_METHOD llm_act &operator=(float x) {
    bits = port_bf16(x);
    return *this;
  }
  PORT_METHOD llm_act &operator+=(float x) { return *this = *this + x; }
};
#endif

/* num_expf without branches, the same bits. */
PORT_INLINE float port_exp(float x) {
  float shifted = fmaf(x, EXPF_LOG2E, EXPF_MAGIC), n = shifted - EXPF_MAGIC;
  float r = fmaf(n, -EXPF_LN2_LOW, fmaf(n, -EXPF_LN2_HIGH, x));
  float p = fmaf(EXPF_P5, r, EXPF_P4);
  p = fmaf(p, r, EXPF_P3);
  p = fmaf(p, r, EXPF_P2);
  p = fmaf(p, r, EXPF_P1);
  p = fmaf(p, r, EXPF_P0);
  uint32_t bits = port_bits(fmaf(p, r * r, r) + 1.0f);
  bits += (port_bits(shifted) - port_bits(EXPF_MAGIC)) << 23;
  /* Integer masks, because a choice between floats is compiled to branches. */
  const uint32_t under = 0u - (uint32_t)(x < EXPF_MIN), over = 0u - (uint32_t)(x > EXPF_MAX);
  const uint32_t nan = 0u - (uint32_t)(x != x), infinity = 0x7f800000u;
  bits = (bits & ~under & ~over) | (infinity & over);
  return port_float((bits & ~nan) | (port_bits(x) & nan));
}

#endif
