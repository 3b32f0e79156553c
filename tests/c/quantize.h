/* quantize.h: rounding to each tensor type, for the tests' weights: the engine only expands. As the
 * formats are defined, bit-identical to the public gguf package for Q8_0, Q4_0, Q4_1 (test_quant.c
 * compares). */
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

static inline uint8_t clip_nibble(float x) { return (uint8_t)(x >= 15 ? 15 : x > 0 ? x : 0); }

static inline float inverse_or_0(float d) { return d != 0 ? 1 / d : 0; }

static inline void pack_nibbles(const uint8_t *nibbles, uint8_t *q) {
  for (int j = 0; j < QK / 2; j++) q[j] = (uint8_t)(nibbles[j] | nibbles[j + QK / 2] << 4);
}

static inline float abs_of(float x) { return x < 0 ? -x : x; }

static inline void quantize_q8_0(const float *src, size_t n_blocks, block_q8_0 *b) {
  for (; n_blocks--; b++, src += QK) {
    float amax = 0;
    for (int j = 0; j < QK; j++)
      if (abs_of(src[j]) > amax) amax = abs_of(src[j]);
    float d = amax / 127, inverse = inverse_or_0(d);
    b->d = f32_to_f16(d);
    for (int j = 0; j < QK; j++) b->q[j] = round_to_i8(src[j] * inverse);
  }
}

static inline void quantize_q4_0(const float *src, size_t n_blocks, block_q4_0 *b) {
  for (; n_blocks--; b++, src += QK) {
    float extreme = src[0]; /* the first value of the largest magnitude becomes -8 */
    for (int j = 1; j < QK; j++)
      if (abs_of(src[j]) > abs_of(extreme)) extreme = src[j];
    float d = extreme / -8, inverse = inverse_or_0(d);
    b->d = f32_to_f16(d);
    uint8_t nibbles[QK];
    for (int j = 0; j < QK; j++) nibbles[j] = clip_nibble(src[j] * inverse + 8.5f);
    pack_nibbles(nibbles, b->q);
  }
}

static inline void quantize_q4_1(const float *src, size_t n_blocks, block_q4_1 *b) {
  for (; n_blocks--; b++, src += QK) {
    float min = src[0], max = src[0];
    for (int j = 1; j < QK; j++) {
      if (src[j] < min) min = src[j];
      if (src[j] > max) max = src[j];
    }
    float d = (max - min) / 15, inverse = inverse_or_0(d);
    b->d = f32_to_f16(d);
    b->m = f32_to_f16(min);
    uint8_t nibbles[QK];
    for (int j = 0; j < QK; j++) nibbles[j] = clip_nibble((src[j] - min) * inverse + 0.5f);
    pack_nibbles(nibbles, b->q);
  }
}

/* n elements, whole blocks of a known type. */
static inline void quantize(llm_type type, const float *src, size_t n, void *dst) {
  assert(n % llm_type_describe(type).n_per_block == 0);
  uint16_t *half = dst;
  switch (type) {
  case LLM_TYPE_F32:
    if (n) memcpy(dst, src, n * sizeof *src);
    return;
  case LLM_TYPE_F16:
    for (size_t i = 0; i < n; i++) half[i] = f32_to_f16(src[i]);
    return;
  case LLM_TYPE_BF16:
    for (size_t i = 0; i < n; i++) half[i] = f32_to_bf16(src[i]);
    return;
  case LLM_TYPE_Q8_0: quantize_q8_0(src, n / QK, dst); return;
  case LLM_TYPE_Q4_0: quantize_q4_0(src, n / QK, dst); return;
  case LLM_TYPE_Q4_1: quantize_q4_1(src, n / QK, dst); return;
  }
}

#endif
