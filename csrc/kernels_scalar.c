/* kernels_scalar.c: the specification. Every function here is the order of operations that
 * kernels.h describes, written as plainly as it goes; the proof block is replayed with it. Layer 2.
 * Compiled for the baseline processor: gcc 12 miscompiles the byte products below when it may use
 * VNNI. */
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "numeric.h"
#include "quant.h"

static float sum_lanes(float *lane) {
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  return lane[0];
}

/* ---- products with float weights ---- */

static float load_f32(const void *src, size_t i) {
  float x;
  memcpy(&x, (const char *)src + 4 * i, sizeof x);
  return x;
}

static float load_f16(const void *src, size_t i) {
  uint16_t h;
  memcpy(&h, (const char *)src + 2 * i, sizeof h);
  return f16_to_f32(h);
}

static float load_bf16(const void *src, size_t i) {
  uint16_t h;
  memcpy(&h, (const char *)src + 2 * i, sizeof h);
  return bf16_to_f32(h);
}

#define DEFINE_FLOAT_PRODUCTS(type, bytes)                                                         \
  static float dot_##type(const void *w, const float *x, size_t n) {                               \
    float lane[LANES] = {0};                                                                       \
    for (size_t k = 0; k < n; k++)                                                                 \
      lane[k % LANES] = fmaf(load_##type(w, k), x[k], lane[k % LANES]);                            \
    return sum_lanes(lane);                                                                        \
  }                                                                                                \
  static void matmul_##type##_scalar(const matmul_args *m, size_t r0, size_t r1, void *scratch) {  \
    (void)scratch;                                                                                 \
    size_t n_in = m->act->n_in;                                                                    \
    for (size_t r = r0; r < r1; r++)                                                               \
      for (size_t t = 0; t < m->act->n_tok; t++)                                                   \
        m->y[t * m->ldy + r] =                                                                     \
            dot_##type((const char *)m->w + r * n_in * bytes, m->act->x + t * n_in, n_in);         \
  }

DEFINE_FLOAT_PRODUCTS(f32, 4)
DEFINE_FLOAT_PRODUCTS(f16, 2)
DEFINE_FLOAT_PRODUCTS(bf16, 2)

/* ---- products with quantized weights ---- */

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

/* ---- attention ---- */

typedef float (*element_load)(const void *src, size_t i);
typedef float (*element_dot)(const void *w, const float *x, size_t n);

static float softmax(float *p, size_t n) { /* unnormalized, in place; returns the sum */
  float max = p[0], lane[LANES] = {0};
  for (size_t i = 1; i < n; i++) max = p[i] > max ? p[i] : max;
  for (size_t i = 0; i < n; i++) {
    p[i] = num_expf(p[i] - max);
    lane[i % LANES] += p[i];
  }
  return sum_lanes(lane);
}

static void attention(const attention_args *a, element_load load, element_dot dot,
                      size_t element_bytes) {
  size_t d_head = a->head_dim, row_bytes = a->stride * element_bytes;
  for (size_t h = 0; h < a->n_q; h++) {
    float *scores = a->scores + h * a->n_pos, *out = a->out + h * d_head;
    for (size_t i = 0; i < a->n_pos; i++)
      scores[i] = dot((const char *)a->k + i * row_bytes, a->q + h * d_head, d_head) * a->scale;
    float inverse = 1.0f / softmax(scores, a->n_pos);
    for (size_t d = 0; d < d_head; d++) {
      float sum = 0;
      for (size_t i = 0; i < a->n_pos; i++)
        sum = fmaf(scores[i], load((const char *)a->v + i * row_bytes, d), sum);
      out[d] = sum * inverse;
    }
  }
}

static void attention_f16_scalar(const attention_args *a) { attention(a, load_f16, dot_f16, 2); }
static void attention_f32_scalar(const attention_args *a) { attention(a, load_f32, dot_f32, 4); }

/* ---- rows ---- */

static void rmsnorm_scalar(float *y, const float *x, const float *w, size_t n, float eps) {
  float r = 1.0f / __builtin_sqrtf(dot_f32(x, x, n) / (float)n + eps);
  for (size_t i = 0; i < n; i++) y[i] = x[i] * r * w[i];
}

static void swiglu_scalar(float *y, const float *gate, const float *up, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + num_expf(-gate[i])) * up[i];
}

static void add_scalar(float *x, const float *y, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] += y[i];
}

static void rope_scalar(float *x, const float *cos, const float *sin, size_t n_pair) {
  for (size_t i = 0; i < n_pair; i++) {
    float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = fmaf(a, cos[i], -(b * sin[i]));
    x[2 * i + 1] = fmaf(a, sin[i], b * cos[i]);
  }
}

static void f32_to_f16_scalar(uint16_t *dst, const float *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i] = f32_to_f16(src[i]);
}

static size_t scratch_bytes_scalar(size_t n_in) {
  (void)n_in;
  return 0;
}

void kernels_set_scalar(kernels *k) {
  k->scratch_bytes = scratch_bytes_scalar;
  k->matmul[LLM_TYPE_F32] = matmul_f32_scalar;
  k->matmul[LLM_TYPE_F16] = matmul_f16_scalar;
  k->matmul[LLM_TYPE_BF16] = matmul_bf16_scalar;
  k->matmul[LLM_TYPE_Q8_0] = matmul_q8_0_scalar;
  k->matmul[LLM_TYPE_Q4_0] = matmul_q4_0_scalar;
  k->matmul[LLM_TYPE_Q4_1] = matmul_q4_1_scalar;
  k->attention_f16 = attention_f16_scalar;
  k->attention_f32 = attention_f32_scalar;
  k->quantize_row = quantize_row_scalar;
  k->rmsnorm = rmsnorm_scalar;
  k->swiglu = swiglu_scalar;
  k->add = add_scalar;
  k->rope = rope_scalar;
  k->f32_to_f16 = f32_to_f16_scalar;
  k->dequantize = dequantize;
}
