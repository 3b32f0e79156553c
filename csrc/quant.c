/* quant.c: the table of tensor types, half-precision conversion, plain expansion of each block
 * format. Layer 0. Written as the formats are defined (ggml-quants.c); the fast kernels are tested
 * against it. */
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

float f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, fraction = h & 0x3ff;
  if (exponent == 31) /* infinity, or NaN made quiet */
    return f32_from_bits(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
  if (exponent) return f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  float x = (float)fraction * 0x1p-24f; /* subnormal or zero: exact */
  return sign ? -x : x;
}

uint16_t f32_to_f16(float x) {
  uint32_t bits = f32_bits(x), magnitude = bits & 0x7fffffff;
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) /* NaN, made quiet */
    return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return sign | 0x7c00; /* rounds to 65536 or more */
  if (magnitude < 0x38800000) { /* below 2^-14: the addition rounds to a multiple of 2^-24 */
    float multiple = f32_from_bits(magnitude) + 0.5f;
    return (uint16_t)(sign | (f32_bits(multiple) - 0x3f000000));
  }
  uint32_t odd = magnitude >> 13 & 1;
  return (uint16_t)(sign | (magnitude - (112u << 23) + 0xfff + odd) >> 13);
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
