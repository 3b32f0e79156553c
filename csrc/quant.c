/* quant.c: the table of tensor types, half-precision conversion, plain expansion and rounding of
 * each block format. Layer 0. Written as the formats are defined (ggml-quants.c, and the public
 * gguf package for the reference rounding); the fast kernels are tested against it. */
#include "quant.h"

#include <assert.h>

#include "error.h"

llm_type_info llm_type_describe(llm_type type) {
  switch (type) {
  case LLM_TYPE_F32: return (llm_type_info){"F32", 1, 4};
  case LLM_TYPE_F16: return (llm_type_info){"F16", 1, 2};
  case LLM_TYPE_BF16: return (llm_type_info){"BF16", 1, 2};
  case LLM_TYPE_Q8_0: return (llm_type_info){"Q8_0", QK, sizeof(block_q8_0)};
  case LLM_TYPE_Q4_0: return (llm_type_info){"Q4_0", QK, sizeof(block_q4_0)};
  case LLM_TYPE_Q4_1: return (llm_type_info){"Q4_1", QK, sizeof(block_q4_1)};
  }
  return (llm_type_info){NULL, 0, 0};
}

size_t type_row_bytes(llm_type type, size_t n) {
  llm_type_info info = llm_type_describe(type);
  assert(info.n_per_block && n % info.n_per_block == 0);
  return n / info.n_per_block * info.bytes_per_block;
}

/* ---- half precision ---- */

static float bits_to_f32(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint32_t f32_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

float f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, fraction = h & 0x3ff;
  if (exponent == 31) /* infinity, or NaN made quiet */
    return bits_to_f32(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
  if (exponent) return bits_to_f32(sign | (exponent + 112) << 23 | fraction << 13);
  float x = (float)fraction * 0x1p-24f; /* subnormal or zero: exact */
  return sign ? -x : x;
}

uint16_t f32_to_f16(float x) {
  uint32_t bits = f32_to_bits(x), magnitude = bits & 0x7fffffff;
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) /* NaN, made quiet */
    return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return sign | 0x7c00; /* rounds to 65536 or more */
  if (magnitude < 0x38800000) { /* below 2^-14: the addition rounds to a multiple of 2^-24 */
    float multiple = bits_to_f32(magnitude) + 0.5f;
    return (uint16_t)(sign | (f32_to_bits(multiple) - 0x3f000000));
  }
  uint32_t odd = magnitude >> 13 & 1;
  return (uint16_t)(sign | (magnitude - (112u << 23) + 0xfff + odd) >> 13);
}

uint16_t f32_to_bf16(float x) {
  uint32_t bits = f32_to_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ---- expansion ---- */

static void dequantize_q8_0(const block_q8_0 *b, size_t n_blocks, float *dst) {
  for (; n_blocks--; b++, dst += QK) {
    float d = f16_to_f32(b->d);
    for (int j = 0; j < QK; j++) dst[j] = d * (float)b->q[j];
  }
}

static void dequantize_q4_0(const block_q4_0 *b, size_t n_blocks, float *dst) {
  for (; n_blocks--; b++, dst += QK) {
    float d = f16_to_f32(b->d);
    for (int j = 0; j < QK / 2; j++) {
      dst[j] = d * (float)((b->q[j] & 15) - 8);
      dst[j + QK / 2] = d * (float)((b->q[j] >> 4) - 8);
    }
  }
}

/* The product and the sum are rounded one after the other, as in the gguf package. */
static void dequantize_q4_1(const block_q4_1 *b, size_t n_blocks, float *dst) {
  for (; n_blocks--; b++, dst += QK) {
    float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
    for (int j = 0; j < QK / 2; j++) {
      dst[j] = d * (float)(b->q[j] & 15) + m;
      dst[j + QK / 2] = d * (float)(b->q[j] >> 4) + m;
    }
  }
}

/* Sources may lie at any byte of a file: 16-bit values are read by memcpy. */
static uint16_t load_u16(const void *src, size_t i) {
  uint16_t h;
  memcpy(&h, (const char *)src + 2 * i, sizeof h);
  return h;
}

void dequantize(llm_type type, const void *src, size_t n, float *dst) {
  assert(n % llm_type_describe(type).n_per_block == 0);
  switch (type) {
  case LLM_TYPE_F32:
    if (n) memcpy(dst, src, n * sizeof *dst);
    return;
  case LLM_TYPE_F16:
    for (size_t i = 0; i < n; i++) dst[i] = f16_to_f32(load_u16(src, i));
    return;
  case LLM_TYPE_BF16:
    for (size_t i = 0; i < n; i++) dst[i] = bf16_to_f32(load_u16(src, i));
    return;
  case LLM_TYPE_Q8_0: dequantize_q8_0(src, n / QK, dst); return;
  case LLM_TYPE_Q4_0: dequantize_q4_0(src, n / QK, dst); return;
  case LLM_TYPE_Q4_1: dequantize_q4_1(src, n / QK, dst); return;
  }
}

llm_status llm_dequantize(llm_type type, const void *src, size_t n, float *dst, llm_error *err) {
  llm_type_info info = llm_type_describe(type);
  if (!info.n_per_block)
    return error_set(err, LLM_ERR_UNSUPPORTED, "dequantize: tensor type %d is not known",
                     (int)type);
  if (n % info.n_per_block)
    return error_set(err, LLM_ERR_ARG, "dequantize: %zu elements, but %s has blocks of %zu", n,
                     info.name, info.n_per_block);
  dequantize(type, src, n, dst);
  return error_clear(err);
}

/* ---- the reference rounding ---- */

/* Half away from zero. x is at most 127 but for blocks of infinities, NaNs or subnormals. */
static int8_t round_to_i8(float x) {
  float a = x < 0 ? -x : x;
  int i = a < 127 ? (int)a : a >= 127 ? 127 : 0;
  if (a - (float)i >= 0.5f && i < 127) i++;
  return (int8_t)(x < 0 ? -i : i);
}

static uint8_t clip_nibble(float x) { return (uint8_t)(x >= 15 ? 15 : x > 0 ? x : 0); }

static float inverse_or_0(float d) { return d != 0 ? 1 / d : 0; }

static void pack_nibbles(const uint8_t *nibbles, uint8_t *q) {
  for (int j = 0; j < QK / 2; j++) q[j] = (uint8_t)(nibbles[j] | nibbles[j + QK / 2] << 4);
}

static float abs_of(float x) { return x < 0 ? -x : x; }

static void quantize_q8_0(const float *src, size_t n_blocks, block_q8_0 *b) {
  for (; n_blocks--; b++, src += QK) {
    float amax = 0;
    for (int j = 0; j < QK; j++)
      if (abs_of(src[j]) > amax) amax = abs_of(src[j]);
    float d = amax / 127, inverse = inverse_or_0(d);
    b->d = f32_to_f16(d);
    for (int j = 0; j < QK; j++) b->q[j] = round_to_i8(src[j] * inverse);
  }
}

static void quantize_q4_0(const float *src, size_t n_blocks, block_q4_0 *b) {
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

static void quantize_q4_1(const float *src, size_t n_blocks, block_q4_1 *b) {
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

void quantize(llm_type type, const float *src, size_t n, void *dst) {
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
