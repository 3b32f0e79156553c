/* kernels_scalar_quant.c: products with quantized weights and the rounding of activations, in the
 * order of operations that kernels.h describes. Layer 2. Compiled for the baseline processor:
 * gcc 12 miscompiles the byte products below when it may use VNNI. */
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "quant.h"

static int dot_i8(const int8_t *w, const int8_t *a) {
  int sum = 0;
  for (int j = 0; j < QK; j++) sum += w[j] * a[j];
  return sum;
}

static void unpack_nibbles(const uint8_t *q, int offset, int8_t *w) {
  for (int j = 0; j < QK / 2; j++) {
    w[j] = (int8_t)((q[j] & 15) - offset);
    w[j + QK / 2] = (int8_t)((q[j] >> 4) - offset);
  }
}

static float dot_q8_0(const block_q8_0 *b, const int8_t *a, const float *scale, const float *sum,
                      size_t n_blocks) {
  (void)sum;
  float y = 0;
  for (size_t i = 0; i < n_blocks; i++)
    y = fmaf((float)dot_i8(b[i].q, a + i * QK), f16_to_f32(b[i].d) * scale[i], y);
  return y;
}

static float dot_q4_0(const block_q4_0 *b, const int8_t *a, const float *scale, const float *sum,
                      size_t n_blocks) {
  (void)sum;
  float y = 0;
  for (size_t i = 0; i < n_blocks; i++) {
    int8_t w[QK];
    unpack_nibbles(b[i].q, 8, w);
    y = fmaf((float)dot_i8(w, a + i * QK), f16_to_f32(b[i].d) * scale[i], y);
  }
  return y;
}

static float dot_q4_1(const block_q4_1 *b, const int8_t *a, const float *scale, const float *sum,
                      size_t n_blocks) {
  float y = 0;
  for (size_t i = 0; i < n_blocks; i++) {
    int8_t w[QK];
    unpack_nibbles(b[i].q, 0, w);
    y = fmaf((float)dot_i8(w, a + i * QK), f16_to_f32(b[i].d) * scale[i], y);
    y = fmaf(f16_to_f32(b[i].m), sum[i], y);
  }
  return y;
}

#define DEFINE_QUANTIZED_MATMUL(type)                                                              \
  static void matmul_##type##_scalar(const matmul_args *m, size_t r0, size_t r1, void *scratch) {  \
    (void)scratch;                                                                                 \
    const act_rows *a = m->act;                                                                    \
    size_t n_blocks = a->n_in / QK;                                                                \
    for (size_t r = r0; r < r1; r++)                                                               \
      for (size_t t = 0; t < a->n_tok; t++)                                                        \
        m->y[t * m->ldy + r] =                                                                     \
            dot_##type((const block_##type *)m->w + r * n_blocks, a->q + t * a->n_in,              \
                       a->scale + t * n_blocks, a->scaled_sum + t * n_blocks, n_blocks);           \
  }

DEFINE_QUANTIZED_MATMUL(q8_0)
DEFINE_QUANTIZED_MATMUL(q4_0)
DEFINE_QUANTIZED_MATMUL(q4_1)

static void quantize_block(const float *x, int8_t *q, float *scale, float *scaled_sum,
                           int32_t *sum) {
  float amax = 0;
  for (int j = 0; j < QK; j++) amax = fmaxf(amax, fabsf(x[j]));
  float inverse = amax < ACT_TINY ? 0 : 127 / amax;
  *scale = amax < ACT_TINY ? 0 : amax / 127;
  *sum = 0;
  for (int j = 0; j < QK; j++) {
    /* adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits */
    float shifted = x[j] * inverse + 0x1.8p23f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    q[j] = (int8_t)(bits & 0xff);
    *sum += q[j];
  }
  *scaled_sum = *scale * (float)*sum;
}

static void quantize_row_scalar(const float *x, size_t n, int8_t *q, float *scale,
                                float *scaled_sum, int32_t *sum) {
  for (size_t b = 0; b < n / QK; b++)
    quantize_block(x + b * QK, q + b * QK, scale + b, scaled_sum + b, sum + b);
}

void kernels_set_scalar_quant(kernels *k) {
  k->matmul[LLM_TYPE_Q8_0] = matmul_q8_0_scalar;
  k->matmul[LLM_TYPE_Q4_0] = matmul_q4_0_scalar;
  k->matmul[LLM_TYPE_Q4_1] = matmul_q4_1_scalar;
  k->quantize_row = quantize_row_scalar;
}
