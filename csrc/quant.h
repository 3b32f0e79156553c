/* quant.h: tensor types. Block layouts as they lie in a GGUF file, half-precision conversion, and
 * the plain expansion to float32 that every fast kernel is tested against. Layer 0. Source: ggml's
 * block formats (ggml-common.h), little endian. */
#ifndef LLM_QUANT_H
#define LLM_QUANT_H

#include <string.h>

#include "llm.h"
#include "numeric.h"

enum {
  QK = 32,       /* elements in a block; activations are rounded in blocks of as many */
  QK_SUPER = 256 /* elements in a super-block (Q4_K, Q5_K, Q6_K), 8 blocks */
};

typedef struct block_q8_0 { /* x = d * q */
  uint16_t d;               /* float16 */
  int8_t q[QK];
} block_q8_0;

typedef struct block_q4_0 { /* x = d * (q - 8); element j < 16 is the low half of q[j], */
  uint16_t d;               /*   element j + 16 the high half */
  uint8_t q[QK / 2];
} block_q4_0;

typedef struct block_q4_1 { /* x = d * q + m, nibbles as in q4_0 */
  uint16_t d, m;
  uint8_t q[QK / 2];
} block_q4_1;

typedef struct block_q5_0 { /* x = d * (q - 16), low four bits as in q4_0; bit j of high is the */
  uint16_t d;               /*   fifth of element j (little endian) */
  uint8_t high[4], q[QK / 2];
} block_q5_0;

typedef struct block_q5_1 { /* x = d * q + m, bits as in q5_0 */
  uint16_t d, m;
  uint8_t high[4], q[QK / 2];
} block_q5_1;

/* x = d * scale * q - dmin * minimum, with 6-bit scales and minima of each block of 32. Bytes 32i
 * to 32i + 31 of q are the blocks 2i (low halves) and 2i + 1 (high halves). */
typedef struct block_q4_k {
  uint16_t d, dmin;
  uint8_t scales[12]; /* see k_scale */
  uint8_t q[QK_SUPER / 2];
} block_q4_k;

typedef struct block_q5_k { /* as q4_k; bit i of high[j] is the fifth of element j of block i */
  uint16_t d, dmin;
  uint8_t scales[12], high[QK], q[QK_SUPER / 2];
} block_q5_k;

/* x = d * scale * (q - 32), a scale for each 16 elements. Each half of 128 elements has 64 bytes of
 * low: element j in the low half of byte j, element j + 64 in the high half; and 32 bytes of high:
 * byte j has two bits of each of the elements j, j + 32, j + 64, j + 96, from the lowest up. */
typedef struct block_q6_k {
  uint8_t low[QK_SUPER / 2], high[QK_SUPER / 4];
  int8_t scales[QK_SUPER / 16];
  uint16_t d;
} block_q6_k;

_Static_assert(sizeof(block_q8_0) == 34, "block_q8_0 is 34 bytes on disk");
_Static_assert(sizeof(block_q4_0) == 18, "block_q4_0 is 18 bytes on disk");
_Static_assert(sizeof(block_q4_1) == 20, "block_q4_1 is 20 bytes on disk");
_Static_assert(sizeof(block_q5_0) == 22, "block_q5_0 is 22 bytes on disk");
_Static_assert(sizeof(block_q5_1) == 24, "block_q5_1 is 24 bytes on disk");
_Static_assert(sizeof(block_q4_k) == 144, "block_q4_k is 144 bytes on disk");
_Static_assert(sizeof(block_q5_k) == 176, "block_q5_k is 176 bytes on disk");
_Static_assert(sizeof(block_q6_k) == 210, "block_q6_k is 210 bytes on disk");

/* Exact. Portable bit arithmetic, the same bits as F16C. */
float f16_to_f32(uint16_t h);
/* Round to nearest even; overflow gives infinity, NaN stays NaN. */
uint16_t f32_to_f16(float x);

/* The six-bit scale and minimum of block b, of 8, of a Q4_K or Q5_K super-block. The first four of
 * both have the low bits of a byte; the others have four bits in the last bytes, and as their high
 * bits the two that the first leave. */
static inline void k_scale(const uint8_t *scales, size_t b, int *scale, int *minimum) {
  const uint8_t *s = scales + b; /* s[4] is of the minima when b < 4, of both when not */
  *scale = b < 4 ? s[0] & 63 : (s[4] & 15) | s[-4] >> 6 << 4;
  *minimum = b < 4 ? s[4] & 63 : s[4] >> 4 | s[0] >> 6 << 4;
}

static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

/* Bytes of n elements; n must be a whole number of blocks of a known type (asserted). */
size_t type_row_bytes(llm_type type, size_t n);

/* 32 elements of any quantized type, in integers: x[j] = scale[j / 16] * q[j] + minimum. Only the
 * types of type_has_minimum have one. Scales and minima are exact: the products that make those of
 * super-blocks have at most 19 bits. */
typedef struct quant_block {
  int8_t q[QK];
  float scale[2], minimum;
} quant_block;

int type_is_quantized(llm_type type);
static inline int type_has_minimum(llm_type type) {
  return type == LLM_TYPE_Q4_1 || type == LLM_TYPE_Q5_1 || type == LLM_TYPE_Q4_K ||
         type == LLM_TYPE_Q5_K;
}
/* Elements 32 b to 32 b + 31 of a row. */
void quant_block_get(llm_type type, const void *row, size_t b, quant_block *out);

/* Expands n elements to float32; type known and n whole blocks (asserted). */
void dequantize(llm_type type, const void *src, size_t n, float *dst);

#endif
