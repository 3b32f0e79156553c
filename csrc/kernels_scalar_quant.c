/* kernels_scalar_quant.c: products with quantized weights and the rounding of activations, in the
 * order of operations that kernels.h describes. Layer 2. Compiled for the baseline processor:
 * gcc 12 miscompiles the byte products below when it may use VNNI. */
#include <math.h>
#include <string.h>

#include "kernels_simd.h"

static float dot_i8(const int8_t *w, const int8_t *a, int n) {
  int sum = 0;
  for (int j = 0; j < n; j++) sum += w[j] * a[j];
  return (float)sum;
}

/* y + a block of a row times the same block of a token; `like`: a type of the same kind. */
ALWAYS_INLINE float add_block(const llm_type like, const quant_block *w, const act_block *a,
                              float y) {
  if (like == LLM_TYPE_Q6_K) {
    float low = dot_i8(w->q, a->q, QK / 2) * w->scale[0];
    return fmaf(fmaf(dot_i8(w->q + QK / 2, a->q + QK / 2, QK / 2), w->scale[1], low), a->scale, y);
  }
  y = fmaf(dot_i8(w->q, a->q, QK), w->scale[0] * a->scale, y);
  return type_has_minimum(like) ? fmaf(w->minimum, a->scaled_sum, y) : y;
}

/* Each block is unpacked once; the sums of all tokens grow in m->y. */
ALWAYS_INLINE void matmul(const llm_type like, llm_type type, const matmul_args *m, size_t r0,
                          size_t r1) {
  size_t n_tok = m->act->n_tok, row_bytes = type_row_bytes(type, m->act->n_in);
  size_t n_blocks = m->act->n_in / QK;
  for (size_t r = r0; r < r1; r++) {
    for (size_t t = 0; t < n_tok; t++) m->y[t * m->ldy + r] = 0;
    for (size_t b = 0; b < n_blocks; b++) {
      _Alignas(64) quant_block w; /* its quants in one cache line */
      quant_block_get(type, (const char *)m->w + r * row_bytes, b, &w);
      for (size_t t = 0; t < n_tok; t++) {
        float *y = &m->y[t * m->ldy + r];
        *y = add_block(like, &w, &m->act->q[t * n_blocks + b], *y);
      }
    }
  }
}

SHARED_CODE void matmul_plain(llm_type type, const matmul_args *m, size_t r0, size_t r1) {
  matmul(LLM_TYPE_Q8_0, type, m, r0, r1);
}

SHARED_CODE void matmul_minima(llm_type type, const matmul_args *m, size_t r0, size_t r1) {
  matmul(LLM_TYPE_Q4_1, type, m, r0, r1);
}

#define DEFINE_QUANTIZED_MATMUL(name, type)                                                        \
  static void matmul_##name##_scalar(const matmul_args *m, size_t r0, size_t r1, void *scratch) {  \
    (void)scratch;                                                                                 \
    if (type == LLM_TYPE_Q6_K)                                                                     \
      matmul(type, type, m, r0, r1);                                                               \
    else if (type_has_minimum(type))                                                               \
      matmul_minima(type, m, r0, r1);                                                              \
    else                                                                                           \
      matmul_plain(type, m, r0, r1);                                                               \
  }
FOR_QUANTIZED_TYPES(DEFINE_QUANTIZED_MATMUL)

static void quantize_block(const float *x, act_block *a) {
  float amax = 0;
  for (int j = 0; j < QK; j++) amax = fmaxf(amax, fabsf(x[j]));
  float inverse = amax < ACT_TINY ? 0 : 127 / amax;
  a->scale = amax < ACT_TINY ? 0 : amax / 127;
  a->sum = 0;
  for (int j = 0; j < QK; j++) {
    /* adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits */
    float shifted = x[j] * inverse + 0x1.8p23f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    a->q[j] = (int8_t)(bits & 0xff);
    if (j == QK / 2) a->sum_of_half = a->sum;
    a->sum += a->q[j];
  }
  a->scaled_sum = a->scale * (float)a->sum;
}

static void quantize_row_scalar(const float *x, size_t n, act_block *q) {
  for (size_t b = 0; b < n / QK; b++) quantize_block(x + b * QK, q + b);
}

void kernels_set_scalar_quant(kernels *k) {
#define SET_QUANTIZED(name, type) k->matmul[type] = matmul_##name##_scalar;
  FOR_QUANTIZED_TYPES(SET_QUANTIZED)
  k->quantize_row = quantize_row_scalar;
}
