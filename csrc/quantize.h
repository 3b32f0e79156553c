/* quantize.h: rounding float32 rows to each tensor type, the way back of quant.h's dequantize().
 * Layer 0. Two ways: by the rule of each format, bit-identical to the public gguf package for the
 * types that it writes, and by a search for the scales that lose least (quantize_fit.c). */
#ifndef LLM_QUANTIZE_H
#define LLM_QUANTIZE_H

#include "quant.h"

/* Round to nearest even; overflow gives infinity, NaN stays NaN. */
static inline uint16_t f32_to_bf16(float x) {
  uint32_t bits = f32_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Any |x| < 2^22. */
static inline float round_to_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

/* 0 where the inverse would be no number: for 0, and for what is so near to it that 1 / d
 * overflows. Such a scale is 0 as F16. */
static inline float inverse_or_0(float d) {
  float inverse = d != 0 ? 1 / d : 0;
  return inverse <= 0x1.fffffep127f && inverse >= -0x1.fffffep127f ? inverse : 0;
}

/* n elements by the rule of a known type, n whole blocks of it (asserted). Finite elements, unless
 * the type has no blocks. Super-blocks have no rule: they are searched for. */
void quantize(llm_type type, const float *src, size_t n, void *dst);

/* A row by search: the scales that make the sum of importance * error^2 small; then each element
 * to the nearest level. With feedback, (n, n), the error e of element j is first taken from the
 * elements behind it: row[k] -= e * feedback[j * n + k] for k > j. row is scratch then. All finite,
 * importance above 0 and NULL for all equal, type quantized. */
void quantize_fit(llm_type type, float *row, size_t n, const float *importance,
                  const float *feedback, void *dst);
/* The same without instructions that not all processors have: the same bytes. */
void quantize_fit_portable(llm_type type, float *row, size_t n, const float *importance,
                           const float *feedback, void *dst);

/* The quants of a block, less the least (0 and up), into the bits of a block of its type. */
void pack_quants(llm_type type, const uint8_t *quants, void *block);
/* Six-bit scales and minima of Q4_K and Q5_K: see k_scale. */
void pack_k_scales(const uint8_t *scale, const uint8_t *minimum, uint8_t *packed);

#endif
