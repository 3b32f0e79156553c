/* kernels_neon_attention.c: attention by NEON. Layer 2. Positions come in chunks that stay in L1
 * while all query heads pass; values are expanded once for three heads side by side. */
#include "kernels.h"

#if defined(__aarch64__)
#include "kernels_attention.h"
#include "kernels_neon.h"

enum { TILE = 16 }; /* elements of the values of heads side by side */

/* ---- scores ---- */

static void float_scores(const chunk *c) {
  const attention_args *a = c->a;
  const float_product p = {(const char *)a->k + c->from * a->k_bytes,
                           a->k_bytes,
                           c->to - c->from,
                           a->q,
                           a->n_q,
                           a->head_dim,
                           a->scores + c->from,
                           a->n_pos};
  if (a->k_type == LLM_TYPE_F16)
    float_product_f16_neon(&p);
  else
    float_product_f32_neon(&p);
}

/* 32 elements of a query in 16 bits; returns their scale. */
ALWAYS_INLINE float round_query(const float *x, int16x4_t q[8]) {
  float32x4_t largest = vdupq_n_f32(0);
  UNROLL
  for (size_t i = 0; i < 8; i++) largest = vmaxnmq_f32(largest, vabsq_f32(vld1q_f32(x + 4 * i)));
  const float amax = vmaxnmvq_f32(largest), inverse = amax < ACT_TINY ? 0 : 32767 / amax;
  UNROLL
  for (size_t i = 0; i < 8; i++)
    q[i] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse)));
  return amax < ACT_TINY ? 0 : amax / 32767;
}

/* The lanes' sum is a key's block times a query's. */
ALWAYS_INLINE int32x4_t dot_q8_0(const block_q8_0 *k, const int16x4_t q[8]) {
  int32x4_t sum = vdupq_n_s32(0);
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    const int16x8_t x = vmovl_s8(vld1_s8(k->q + 8 * i));
    sum = vmlal_s16(sum, vget_low_s16(x), q[2 * i]);
    sum = vmlal_s16(sum, vget_high_s16(x), q[2 * i + 1]);
  }
  return sum;
}

/* One block of the keys, at k in the first of n of them, added to the scores y. */
static void block_scores(const char *k, size_t k_bytes, size_t n, const float *x, float *y) {
  int16x4_t q[8];
  const float scale = round_query(x, q);
  size_t i = 0;
  for (; i + 4 <= n; i += 4, k += 4 * k_bytes) {
    float32x4_t key_scale, unused;
    int32x4_t dot[4];
    load_scales(LLM_TYPE_Q8_0, (const uint8_t *)k, k_bytes, &key_scale, &unused);
    UNROLL
    for (size_t j = 0; j < 4; j++) dot[j] = dot_q8_0((const block_q8_0 *)(k + j * k_bytes), q);
    const float32x4_t sum = vcvtq_f32_s32(sum_rows(dot));
    vst1q_f32(y + i, vfmaq_f32(vld1q_f32(y + i), sum, vmulq_n_f32(key_scale, scale)));
  }
  for (; i < n; i++, k += k_bytes) {
    const block_q8_0 *block = (const block_q8_0 *)k;
    y[i] = fmaf((float)vaddvq_s32(dot_q8_0(block, q)), f16_to_f32(block->d) * scale, y[i]);
  }
}

static void scores_q8_0(const chunk *c) {
  const attention_args *a = c->a;
  const size_t n = c->to - c->from;
  for (size_t h = 0; h < a->n_q; h++) {
    const float *q = a->q + h * a->head_dim;
    const char *k = (const char *)a->k + c->from * a->k_bytes;
    float *y = a->scores + h * a->n_pos + c->from;
    memset(y, 0, n * sizeof *y);
    for (size_t b = 0; b < a->head_dim / QK; b++)
      block_scores(k + b * sizeof(block_q8_0), a->k_bytes, n, q + b * QK, y);
  }
}

/* ---- softmax ---- */

/* p = num_expf(p * scale - max) in place; returns their sum. */
static float softmax(float *p, size_t n, float scale, float *largest) {
  float32x4_t maxima = vdupq_n_f32(-INFINITY);
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t v = vmulq_n_f32(vld1q_f32(p + i), scale);
    vst1q_f32(p + i, v);
    maxima = vmaxq_f32(maxima, v);
  }
  float max = vmaxvq_f32(maxima);
  for (; i < n; i++) {
    p[i] *= scale;
    max = p[i] > max ? p[i] : max;
  }
  for (i = 0; i + 4 <= n; i += 4)
    vst1q_f32(p + i, expf4(vsubq_f32(vld1q_f32(p + i), vdupq_n_f32(max))));
  for (; i < n; i++) p[i] = num_expf(p[i] - max);
  *largest = max;
  return sum_of_neon(p, n);
}

/* ---- values ---- */

/* 16 elements of a value from element d on; of Q8_0 the integers. */
ALWAYS_INLINE void load_value(const llm_type type, const char *v, size_t d, float32x4_t x[4]) {
  if (type != LLM_TYPE_Q8_0) {
    UNROLL
    for (size_t i = 0; i < 4; i++) x[i] = load4(type, v, d + 4 * i);
    return;
  }
  UNROLL
  for (size_t i = 0; i < 4; i += 2) {
    const int16x8_t eight = vmovl_s8(vld1_s8(((const block_q8_0 *)v)[d / QK].q + d % QK + 4 * i));
    x[i] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight)));
    x[i + 1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(eight)));
  }
}

/* Adds the chunk to out[d] to out[d + 15] of n_q heads. */
ALWAYS_INLINE void values_tile(const llm_type type, const size_t n_q, const chunk *c,
                               const shares *s, size_t d) {
  const attention_args *a = c->a;
  const char *v = (const char *)a->v + c->from * a->v_bytes;
  float *out = a->out + s->h * a->head_dim + d;
  float32x4_t sum[SIDE][4];
  UNROLL
  for (size_t j = 0; j < n_q; j++) {
    UNROLL
    for (size_t i = 0; i < 4; i++)
      sum[j][i] = c->from ? vld1q_f32(out + j * a->head_dim + 4 * i) : vdupq_n_f32(0);
  }
  for (size_t pos = 0; pos < c->to - c->from; pos++, v += a->v_bytes) {
    float32x4_t x[4];
    load_value(type, v, d, x);
    UNROLL
    for (size_t j = 0; j < n_q; j++) {
      const float32x4_t p = vld1q_dup_f32(s->p + j * s->stride + pos);
      UNROLL
      for (size_t i = 0; i < 4; i++) sum[j][i] = vfmaq_f32(sum[j][i], p, x[i]);
    }
  }
  UNROLL
  for (size_t j = 0; j < n_q; j++) {
    UNROLL
    for (size_t i = 0; i < 4; i++) vst1q_f32(out + j * a->head_dim + 4 * i, sum[j][i]);
  }
}

ALWAYS_INLINE void float_values(const llm_type type, const size_t n_q, const chunk *c, size_t h) {
  const attention_args *a = c->a;
  const shares s = {a->scores + h * a->n_pos + c->from, a->n_pos, h};
  size_t d = 0;
  for (; d + TILE <= a->head_dim; d += TILE) values_tile(type, n_q, c, &s, d);
  if (d < a->head_dim) add_tail(type, n_q, c, &s, d);
}

/* A block's scale goes to the positions' shares, its integers meet them. */
ALWAYS_INLINE void values_q8_0(const size_t n_q, const chunk *c, size_t h) {
  const attention_args *a = c->a;
  float scaled[SIDE][CHUNK];
  const shares s = {scaled[0], CHUNK, h};
  for (size_t b = 0; b < a->head_dim / QK; b++) {
    const char *v = (const char *)a->v + c->from * a->v_bytes + b * sizeof(block_q8_0);
    for (size_t pos = 0; pos < c->to - c->from; pos++, v += a->v_bytes) {
      const float scale = f16_to_f32(((const block_q8_0 *)v)->d);
      for (size_t j = 0; j < n_q; j++)
        scaled[j][pos] = a->scores[(h + j) * a->n_pos + c->from + pos] * scale;
    }
    for (size_t d = b * QK; d < (b + 1) * QK; d += TILE) values_tile(LLM_TYPE_Q8_0, n_q, c, &s, d);
  }
}

/* ---- the whole ---- */

ALWAYS_INLINE void values_of(const llm_type type, const size_t n_q, const chunk *c, size_t h) {
  if (type == LLM_TYPE_Q8_0)
    values_q8_0(n_q, c, h);
  else
    float_values(type, n_q, c, h);
}

ALWAYS_INLINE void chunk_values(const llm_type type, const chunk *c) { FOR_HEADS(values_of); }

static void attention_neon(const attention_args *a) {
  chunk c = {.a = a};
  for (c.from = 0; c.from < a->n_pos; c.from = c.to) {
    c.to = min_size(c.from + CHUNK, a->n_pos);
    if (a->k_type == LLM_TYPE_Q8_0)
      scores_q8_0(&c);
    else
      float_scores(&c);
  }
  for (size_t h = 0; h < a->n_q; h++)
    a->sum[h] = softmax(a->scores + h * a->n_pos, a->n_pos, a->scale, &a->max[h]);
  for (c.from = 0; c.from < a->n_pos; c.from = c.to) {
    c.to = min_size(c.from + CHUNK, a->n_pos);
    FOR_TYPES(a->v_type, chunk_values, &c)
  }
}

void kernels_set_neon_attention(kernels *k) { k->attention = attention_neon; }
#endif
