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
  case LLM_TYPE_Q5_0: return (llm_type_info){"Q5_0", QK, sizeof(block_q5_0)};
  case LLM_TYPE_Q5_1: return (llm_type_info){"Q5_1", QK, sizeof(block_q5_1)};
  case LLM_TYPE_Q4_K: return (llm_type_info){"Q4_K", QK_SUPER, sizeof(block_q4_k)};
  case LLM_TYPE_Q5_K: return (llm_type_info){"Q5_K", QK_SUPER, sizeof(block_q5_k)};
  case LLM_TYPE_Q6_K: return (llm_type_info){"Q6_K", QK_SUPER, sizeof(block_q6_k)};
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

/* ---- blocks ---- */

int type_is_quantized(llm_type type) { return llm_type_describe(type).n_per_block > 1; }

static void set_scale(quant_block *out, float scale) { out->scale[0] = out->scale[1] = scale; }

static void set_nibbles(quant_block *restrict out, const uint8_t *restrict q, int offset) {
  for (int j = 0; j < QK / 2; j++) {
    out->q[j] = (int8_t)((q[j] & 15) - offset);
    out->q[j + QK / 2] = (int8_t)((q[j] >> 4) - offset);
  }
}

/* Bit j of high is worth 16 in element j. */
static void add_fifth_bits(quant_block *restrict out, const uint8_t *restrict high) {
  for (int j = 0; j < QK; j++) out->q[j] = (int8_t)(out->q[j] + (high[j / 8] >> j % 8 & 1) * 16);
}

/* Scale, minimum and low four bits, which Q4_K and Q5_K have in common. */
static void set_k(quant_block *restrict out, uint16_t d, uint16_t dmin, const uint8_t *scales,
                  const uint8_t *restrict q, size_t b) {
  int scale, minimum;
  k_scale(scales, b, &scale, &minimum);
  set_scale(out, f16_to_f32(d) * (float)scale);
  out->minimum = -(f16_to_f32(dmin) * (float)minimum);
  q += b / 2 * QK;
  if (b % 2)
    for (int j = 0; j < QK; j++) out->q[j] = (int8_t)(q[j] >> 4);
  else
    for (int j = 0; j < QK; j++) out->q[j] = (int8_t)(q[j] & 15);
}

static void get_q4_k(const block_q4_k *restrict s, size_t b, quant_block *restrict out) {
  set_k(out, s->d, s->dmin, s->scales, s->q, b);
}

static void get_q5_k(const block_q5_k *restrict s, size_t b, quant_block *restrict out) {
  set_k(out, s->d, s->dmin, s->scales, s->q, b);
  for (int j = 0; j < QK; j++) out->q[j] = (int8_t)(out->q[j] + (s->high[j] >> b & 1) * 16);
}

static void get_q6_k(const block_q6_k *restrict s, size_t b, quant_block *restrict out) {
  const uint8_t *low = s->low + b / 4 * 64 + b % 2 * QK, *high = s->high + b / 4 * QK;
  const int shift = b % 4 / 2 * 4, two = b % 4 * 2;
  for (int j = 0; j < QK; j++)
    out->q[j] = (int8_t)((low[j] >> shift & 15) + (high[j] >> two & 3) * 16 - 32);
  for (size_t i = 0; i < 2; i++) out->scale[i] = f16_to_f32(s->d) * (float)s->scales[2 * b + i];
}

static void get_q8_0(const block_q8_0 *restrict s, quant_block *restrict out) {
  set_scale(out, f16_to_f32(s->d));
  memcpy(out->q, s->q, QK);
}

static void get_q4_0(const block_q4_0 *restrict s, quant_block *restrict out) {
  set_scale(out, f16_to_f32(s->d));
  set_nibbles(out, s->q, 8);
}

static void get_q4_1(const block_q4_1 *restrict s, quant_block *restrict out) {
  set_scale(out, f16_to_f32(s->d));
  out->minimum = f16_to_f32(s->m);
  set_nibbles(out, s->q, 0);
}

static void get_q5_0(const block_q5_0 *restrict s, quant_block *restrict out) {
  set_scale(out, f16_to_f32(s->d));
  set_nibbles(out, s->q, 16);
  add_fifth_bits(out, s->high);
}

static void get_q5_1(const block_q5_1 *restrict s, quant_block *restrict out) {
  set_scale(out, f16_to_f32(s->d));
  out->minimum = f16_to_f32(s->m);
  set_nibbles(out, s->q, 0);
  add_fifth_bits(out, s->high);
}

void quant_block_get(llm_type type, const void *row, size_t b, quant_block *out) {
  switch (type) {
  case LLM_TYPE_Q8_0: get_q8_0((const block_q8_0 *)row + b, out); return;
  case LLM_TYPE_Q4_0: get_q4_0((const block_q4_0 *)row + b, out); return;
  case LLM_TYPE_Q4_1: get_q4_1((const block_q4_1 *)row + b, out); return;
  case LLM_TYPE_Q5_0: get_q5_0((const block_q5_0 *)row + b, out); return;
  case LLM_TYPE_Q5_1: get_q5_1((const block_q5_1 *)row + b, out); return;
  case LLM_TYPE_Q4_K: get_q4_k((const block_q4_k *)row + b / 8, b % 8, out); return;
  case LLM_TYPE_Q5_K: get_q5_k((const block_q5_k *)row + b / 8, b % 8, out); return;
  case LLM_TYPE_Q6_K: get_q6_k((const block_q6_k *)row + b / 8, b % 8, out); return;
  default: assert(!"a quantized type"); return;
  }
}

/* ---- expansion ---- */

/* The product and the sum are rounded one after the other, as in the gguf package. */
static void dequantize_blocks(llm_type type, const void *src, size_t n_blocks, float *dst) {
  for (size_t b = 0; b < n_blocks; b++, dst += QK) {
    quant_block block;
    quant_block_get(type, src, b, &block);
    for (int j = 0; j < QK; j++) dst[j] = block.scale[j / 16] * (float)block.q[j];
    if (type_has_minimum(type))
      for (int j = 0; j < QK; j++) dst[j] += block.minimum;
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
  default: dequantize_blocks(type, src, n / QK, dst); return;
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
