/* quant.h: tensor types. Block layouts as they lie in a GGUF file, half-precision conversion, and
 * the plain expansion to float32 that every fast kernel is tested against. Layer 0. Source: ggml's
 * block formats (ggml-common.h), little endian. */
#ifndef LLM_QUANT_H
#define LLM_QUANT_H

#include <string.h>

#include "llm.h"
#include "numeric.h"

enum { QK = 32 }; /* elements in a block of every quantized type here */

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

_Static_assert(sizeof(block_q8_0) == 34, "block_q8_0 is 34 bytes on disk");
_Static_assert(sizeof(block_q4_0) == 18, "block_q4_0 is 18 bytes on disk");
_Static_assert(sizeof(block_q4_1) == 20, "block_q4_1 is 20 bytes on disk");

/* Exact. Portable bit arithmetic, the same bits as F16C. */
float f16_to_f32(uint16_t h);
/* Round to nearest even; overflow gives infinity, NaN stays NaN. */
uint16_t f32_to_f16(float x);

static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

/* Bytes of n elements; n must be a whole number of blocks of a known type (asserted). */
size_t type_row_bytes(llm_type type, size_t n);

/* Expands n elements to float32; type known and n whole blocks (asserted). */
void dequantize(llm_type type, const void *src, size_t n, float *dst);

#endif
