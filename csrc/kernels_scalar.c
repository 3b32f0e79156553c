/* kernels_scalar.c: the specification. Every function here is the order of operations that
 * kernels.h describes, written as plainly as it goes; the proof block is replayed with it. Layer 2.
 * Products with quantized weights stand in kernels_scalar_quant.c. */
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

#define DEFINE_DOT(type)                                                                           \
  static float dot_##type(const void *w, const float *x, size_t n) {                               \
    float lane[LANES] = {0};                                                                       \
    for (size_t k = 0; k < n; k++)                                                                 \
      lane[k % LANES] = fmaf(load_##type(w, k), x[k], lane[k % LANES]);                            \
    return sum_lanes(lane);                                                                        \
  }

DEFINE_DOT(f32)
DEFINE_DOT(f16)
DEFINE_DOT(bf16)

#define DEFINE_FLOAT_PRODUCTS(type, bytes)                                                         \
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

/* ---- attention ---- */

/* p = num_expf(p - max) in place; returns the sum. */
static float softmax(float *p, size_t n, float *max) {
  float lane[LANES] = {0};
  *max = p[0];
  for (size_t i = 1; i < n; i++) *max = p[i] > *max ? p[i] : *max;
  for (size_t i = 0; i < n; i++) {
    p[i] = num_expf(p[i] - *max);
    lane[i % LANES] += p[i];
  }
  return sum_lanes(lane);
}

/* 32 elements of a query in 16 bits; returns their scale. */
static float round_query(const float *x, int16_t *q) {
  float amax = 0;
  for (int i = 0; i < QK; i++) amax = fmaxf(amax, fabsf(x[i]));
  float inverse = amax < ACT_TINY ? 0 : 32767 / amax;
  for (int i = 0; i < QK; i++) /* as activations are rounded (kernels_scalar_quant.c) */
    q[i] = (int16_t)(f32_bits(x[i] * inverse + 0x1.8p23f) & 0xffff);
  return amax < ACT_TINY ? 0 : amax / 32767;
}

static void scores_q8_0(const attention_args *a, const float *x, float *scores) {
  for (size_t i = 0; i < a->n_pos; i++) scores[i] = 0;
  for (size_t b = 0; b < a->head_dim / QK; b++) {
    int16_t q[QK];
    float scale = round_query(x + b * QK, q);
    for (size_t i = 0; i < a->n_pos; i++) {
      const block_q8_0 *k = (const block_q8_0 *)((const char *)a->k + i * a->k_bytes) + b;
      int32_t sum = 0;
      for (int j = 0; j < QK; j++) sum += k->q[j] * q[j];
      scores[i] = fmaf((float)sum, f16_to_f32(k->d) * scale, scores[i]);
    }
  }
}

static void scores_of(const attention_args *a, const float *x, float *scores) {
  if (a->k_type == LLM_TYPE_Q8_0) {
    scores_q8_0(a, x, scores);
    return;
  }
  for (size_t i = 0; i < a->n_pos; i++) {
    const char *k = (const char *)a->k + i * a->k_bytes;
    scores[i] = (a->k_type == LLM_TYPE_F16 ? dot_f16 : dot_f32)(k, x, a->head_dim);
  }
}

static float add_value(llm_type type, const void *v, size_t d, float p, float sum) {
  if (type != LLM_TYPE_Q8_0)
    return fmaf(p, type == LLM_TYPE_F16 ? load_f16(v, d) : load_f32(v, d), sum);
  const block_q8_0 *b = (const block_q8_0 *)v + d / QK;
  return fmaf(p * f16_to_f32(b->d), (float)b->q[d % QK], sum);
}

static void attention_scalar(const attention_args *a) {
  for (size_t h = 0; h < a->n_q; h++) {
    float *scores = a->scores + h * a->n_pos, *out = a->out + h * a->head_dim;
    scores_of(a, a->q + h * a->head_dim, scores);
    for (size_t i = 0; i < a->n_pos; i++) scores[i] *= a->scale;
    a->sum[h] = softmax(scores, a->n_pos, &a->max[h]);
    for (size_t d = 0; d < a->head_dim; d++) {
      float sum = 0;
      for (size_t i = 0; i < a->n_pos; i++)
        sum = add_value(a->v_type, (const char *)a->v + i * a->v_bytes, d, scores[i], sum);
      out[d] = sum;
    }
  }
}

/* ---- rows ---- */

static void rmsnorm_scalar(float *y, const float *x, const float *w, size_t n, float eps) {
  float r = 1.0f / __builtin_sqrtf(dot_f32(x, x, n) / (float)n + eps);
  for (size_t i = 0; i < n; i++) y[i] = x[i] * r * w[i];
}

static void layernorm_scalar(float *y, const float *x, const float *w, const float *b, size_t n,
                             float eps) {
  float lane[LANES] = {0};
  for (size_t i = 0; i < n; i++) lane[i % LANES] += x[i];
  float mean = sum_lanes(lane) / (float)n;
  for (size_t i = 0; i < n; i++) y[i] = x[i] - mean;
  float r = 1.0f / __builtin_sqrtf(dot_f32(y, y, n) / (float)n + eps);
  for (size_t i = 0; i < n; i++) y[i] = fmaf(y[i] * r, w[i], b[i]);
}

static void swiglu_scalar(float *y, const float *gate, const float *up, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + num_expf(-gate[i])) * up[i];
}

static float gelu(float x) { return x / (1.0f + num_expf(x * fmaf(GELU_B, x * x, GELU_A))); }

static void gelu_scalar(float *y, const float *x, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = gelu(x[i]);
}

static void geglu_scalar(float *y, const float *gate, const float *up, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = gelu(gate[i]) * up[i];
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

static void rope_halves_scalar(float *x, const float *cos, const float *sin, size_t n_pair) {
  for (size_t i = 0; i < n_pair; i++) {
    float a = x[i], b = x[i + n_pair];
    x[i] = fmaf(a, cos[i], -(b * sin[i]));
    x[i + n_pair] = fmaf(a, sin[i], b * cos[i]);
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
  kernels_set_scalar_quant(k);
  k->scratch_bytes = scratch_bytes_scalar;
  k->matmul[LLM_TYPE_F32] = matmul_f32_scalar;
  k->matmul[LLM_TYPE_F16] = matmul_f16_scalar;
  k->matmul[LLM_TYPE_BF16] = matmul_bf16_scalar;
  k->attention = attention_scalar;
  k->rmsnorm = rmsnorm_scalar;
  k->layernorm = layernorm_scalar;
  k->swiglu = swiglu_scalar;
  k->gelu = gelu_scalar;
  k->geglu = geglu_scalar;
  k->add = add_scalar;
  k->rope = rope_scalar;
  k->rope_halves = rope_halves_scalar;
  k->f32_to_f16 = f32_to_f16_scalar;
  k->dequantize = dequantize;
}
