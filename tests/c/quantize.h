/* quantize.h: rounding to each tensor type, for the tests' weights: the engine only expands. As the
 * formats are defined, bit-identical to the public gguf package for the types of 32 elements
 * (test_quant.c compares); super-blocks in the plainest way, as that package does not write them.
 */
#ifndef LLM_TEST_QUANTIZE_H
#define LLM_TEST_QUANTIZE_H

#include <assert.h>

#include "quant.h"

/* Round to nearest even, NaN stays NaN. */
static inline uint16_t f32_to_bf16(float x) {
  uint32_t bits = f32_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Half away from zero. x is at most 127 but for blocks of infinities, NaNs or subnormals. */
static inline int8_t round_to_i8(float x) {
  float a = x < 0 ? -x : x;
  int i = a < 127 ? (int)a : a >= 127 ? 127 : 0;
  if (a - (float)i >= 0.5f && i < 127) i++;
  return (int8_t)(x < 0 ? -i : i);
}

/* Cut to an integer from 0 to max; NaN is 0. */
static inline uint8_t clip(float x, int max) {
  return (uint8_t)(x >= (float)max ? (float)max : x > 0 ? x : 0);
}

/* Low four bits to q as in q4_0, the fifth to high (which may be NULL). */
static inline void pack_quants(const uint8_t *quants, uint8_t *q, uint8_t *high) {
  for (int j = 0; j < QK / 2; j++)
    q[j] = (uint8_t)((quants[j] & 15) | (quants[j + QK / 2] & 15) << 4);
  for (int j = 0; high && j < QK; j++) {
    if (j % 8 == 0) high[j / 8] = 0;
    high[j / 8] |= (uint8_t)(quants[j] >> 4 << j % 8);
  }
}

static inline float inverse_or_0(float d) { return d != 0 ? 1 / d : 0; }

static inline float abs_of(float x) { return x < 0 ? -x : x; }

static inline void quantize_q8_0(const float *src, block_q8_0 *b) {
  float amax = 0;
  for (int j = 0; j < QK; j++)
    if (abs_of(src[j]) > amax) amax = abs_of(src[j]);
  float d = amax / 127, inverse = inverse_or_0(d);
  b->d = f32_to_f16(d);
  for (int j = 0; j < QK; j++) b->q[j] = round_to_i8(src[j] * inverse);
}

/* Symmetric: the first value of the largest magnitude becomes -half. Quants are 0 to 2 half - 1. */
static inline uint16_t round_symmetric(const float *src, int half, uint8_t *quants) {
  float extreme = src[0];
  for (int j = 1; j < QK; j++)
    if (abs_of(src[j]) > abs_of(extreme)) extreme = src[j];
  float d = extreme / (float)-half, inverse = inverse_or_0(d);
  for (int j = 0; j < QK; j++)
    quants[j] = clip(src[j] * inverse + ((float)half + 0.5f), 2 * half - 1);
  return f32_to_f16(d);
}

/* From the least value, which becomes 0, to the greatest, which becomes max. */
static inline uint16_t round_from_minimum(const float *src, int max, uint8_t *quants, uint16_t *m) {
  float low = src[0], high = src[0];
  for (int j = 1; j < QK; j++) {
    if (src[j] < low) low = src[j];
    if (src[j] > high) high = src[j];
  }
  float d = (high - low) / (float)max, inverse = inverse_or_0(d);
  *m = f32_to_f16(low);
  for (int j = 0; j < QK; j++) quants[j] = clip((src[j] - low) * inverse + 0.5f, max);
  return f32_to_f16(d);
}

static inline void quantize_q4_0(const float *src, block_q4_0 *b) {
  uint8_t quants[QK];
  b->d = round_symmetric(src, 8, quants);
  pack_quants(quants, b->q, NULL);
}

static inline void quantize_q5_0(const float *src, block_q5_0 *b) {
  uint8_t quants[QK];
  b->d = round_symmetric(src, 16, quants);
  pack_quants(quants, b->q, b->high);
}

static inline void quantize_q4_1(const float *src, block_q4_1 *b) {
  uint8_t quants[QK];
  b->d = round_from_minimum(src, 15, quants, &b->m);
  pack_quants(quants, b->q, NULL);
}

static inline void quantize_q5_1(const float *src, block_q5_1 *b) {
  uint8_t quants[QK];
  b->d = round_from_minimum(src, 31, quants, &b->m);
  pack_quants(quants, b->q, b->high);
}

/* ---- super-blocks ---- */

static inline void pack_k_scales(const uint8_t *scale, const uint8_t *minimum, uint8_t *packed) {
  for (int b = 0; b < 4; b++) {
    packed[b] = (uint8_t)(scale[b] | scale[b + 4] >> 4 << 6);
    packed[b + 4] = (uint8_t)(minimum[b] | minimum[b + 4] >> 4 << 6);
    packed[b + 8] = (uint8_t)((scale[b + 4] & 15) | (minimum[b + 4] & 15) << 4);
  }
}

/* Scales, minima and quants (0 to max) of Q4_K and Q5_K: d, dmin. */
static inline void round_k(const float *src, int max, uint16_t *d, uint16_t *dmin, uint8_t *packed,
                           uint8_t *quants) {
  float low[8] = {0}, step[8], most_low = 0, most_step = 0; /* a minimum is subtracted: not > 0 */
  for (int b = 0; b < 8; b++) {
    float high = 0;
    for (int j = b * QK; j < b * QK + QK; j++) {
      if (-src[j] > low[b]) low[b] = -src[j];
      if (src[j] > high) high = src[j];
    }
    step[b] = (high + low[b]) / (float)max;
    if (low[b] > most_low) most_low = low[b];
    if (step[b] > most_step) most_step = step[b];
  }
  *d = f32_to_f16(most_step / 63), *dmin = f32_to_f16(most_low / 63);
  uint8_t scale[8], minimum[8];
  for (int b = 0; b < 8; b++) {
    scale[b] = clip(step[b] * inverse_or_0(f16_to_f32(*d)) + 0.5f, 63);
    minimum[b] = clip(low[b] * inverse_or_0(f16_to_f32(*dmin)) + 0.5f, 63);
    float inverse = inverse_or_0(f16_to_f32(*d) * (float)scale[b]);
    float offset = f16_to_f32(*dmin) * (float)minimum[b];
    for (int j = b * QK; j < b * QK + QK; j++)
      quants[j] = clip((src[j] + offset) * inverse + 0.5f, max);
  }
  pack_k_scales(scale, minimum, packed);
}

static inline void pack_k_nibbles(const uint8_t *quants, uint8_t *q) {
  for (int j = 0; j < QK_SUPER / 2; j++) {
    const uint8_t *pair = quants + j / QK * 2 * QK + j % QK;
    q[j] = (uint8_t)((pair[0] & 15) | (pair[QK] & 15) << 4);
  }
}

static inline void quantize_q4_k(const float *src, block_q4_k *b) {
  uint8_t quants[QK_SUPER];
  round_k(src, 15, &b->d, &b->dmin, b->scales, quants);
  pack_k_nibbles(quants, b->q);
}

static inline void quantize_q5_k(const float *src, block_q5_k *b) {
  uint8_t quants[QK_SUPER];
  round_k(src, 31, &b->d, &b->dmin, b->scales, quants);
  pack_k_nibbles(quants, b->q);
  memset(b->high, 0, sizeof b->high);
  for (int j = 0; j < QK_SUPER; j++) b->high[j % QK] |= (uint8_t)(quants[j] >> 4 << j / QK);
}

static inline void quantize_q6_k(const float *src, block_q6_k *b) {
  float amax[16] = {0}, most = 0;
  for (int j = 0; j < QK_SUPER; j++) {
    if (abs_of(src[j]) > amax[j / 16]) amax[j / 16] = abs_of(src[j]);
    if (abs_of(src[j]) > most) most = abs_of(src[j]);
  }
  b->d = f32_to_f16(most / 31 / 127);
  memset(b->low, 0, sizeof b->low), memset(b->high, 0, sizeof b->high);
  for (int j = 0; j < QK_SUPER; j++) {
    float d = f16_to_f32(b->d);
    int8_t scale = b->scales[j / 16] = round_to_i8(amax[j / 16] / 31 * inverse_or_0(d));
    int q = clip(src[j] * inverse_or_0(d * (float)scale) + 32.5f, 63), half = j / 128, at = j % 128;
    b->low[64 * half + at % 64] |= (uint8_t)((q & 15) << at / 64 * 4);
    b->high[32 * half + at % 32] |= (uint8_t)(q >> 4 << at / 32 * 2);
  }
}

static inline void quantize_block(llm_type type, const float *src, void *dst) {
  switch (type) {
  case LLM_TYPE_F32: memcpy(dst, src, sizeof *src); return;
  case LLM_TYPE_F16: *(uint16_t *)dst = f32_to_f16(*src); return;
  case LLM_TYPE_BF16: *(uint16_t *)dst = f32_to_bf16(*src); return;
  case LLM_TYPE_Q8_0: quantize_q8_0(src, dst); return;
  case LLM_TYPE_Q4_0: quantize_q4_0(src, dst); return;
  case LLM_TYPE_Q4_1: quantize_q4_1(src, dst); return;
  case LLM_TYPE_Q5_0: quantize_q5_0(src, dst); return;
  case LLM_TYPE_Q5_1: quantize_q5_1(src, dst); return;
  case LLM_TYPE_Q4_K: quantize_q4_k(src, dst); return;
  case LLM_TYPE_Q5_K: quantize_q5_k(src, dst); return;
  case LLM_TYPE_Q6_K: quantize_q6_k(src, dst); return;
  }
}

/* n elements, whole blocks of a known type. */
static inline void quantize(llm_type type, const float *src, size_t n, void *dst) {
  llm_type_info info = llm_type_describe(type);
  assert(n % info.n_per_block == 0);
  for (size_t i = 0; i < n / info.n_per_block; i++)
    quantize_block(type, src + i * info.n_per_block, (char *)dst + i * info.bytes_per_block);
}

#endif
