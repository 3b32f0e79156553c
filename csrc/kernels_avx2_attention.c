/* kernels_avx2_attention.c: attention with AVX2, FMA and F16C. Layer 2. Positions come in chunks
 * that stay in L1 while all query heads pass, three side by side, so that a key or value is
 * expanded once for the three; sums over lanes are made for eight positions at once. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_attention.h"
#include "kernels_avx2.h"

enum { AHEAD = 4 << 10 }; /* bytes */

AVX2_INLINE void fetch(const char *p) { _mm_prefetch(p + AHEAD, _MM_HINT_T0); }

/* ---- scores of float keys ---- */

/* The keys at k and one position further, times n_q queries. */
AVX2_INLINE void dot_two(const llm_type type, const int n_q, const attention_args *a, const char *k,
                         const float *q, __m256 out[SIDE]) {
  const char *next = k + a->k_bytes;
  __m256 sum[SIDE][2][2]; /* by query, position, half of the lanes */
  UNROLL
  for (int j = 0; j < n_q; j++)
    sum[j][0][0] = sum[j][0][1] = sum[j][1][0] = sum[j][1][1] = _mm256_setzero_ps();
  for (size_t d = 0; d < a->head_dim; d += LANES) {
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      __m256 x = load8(type, k, d + 8 * half), y = load8(type, next, d + 8 * half);
      UNROLL
      for (size_t j = 0; j < (size_t)n_q; j++) {
        __m256 qd = _mm256_loadu_ps(q + j * a->head_dim + d + 8 * half);
        KEEP(qd);
        sum[j][0][half] = _mm256_fmadd_ps(x, qd, sum[j][0][half]);
        sum[j][1][half] = _mm256_fmadd_ps(y, qd, sum[j][1][half]);
      }
    }
  }
  UNROLL
  for (int j = 0; j < n_q; j++)
    out[j] = halve_two(sum[j][0][0], sum[j][0][1], sum[j][1][0], sum[j][1][1]);
}

/* At eight positions: their values, which come next, to L2. Keys further on where L1 is large
 * (Granite Rapids); where it is small (Zen 4) they come faster unasked. The empty statement is an
 * effect: gcc drops calls of what only prefetches, at -O2 and -O3. */
AVX2 SHARED_CODE void ask_ahead(const attention_args *a, const char *k, size_t pos) {
  __asm__ volatile("");
  for (size_t i = 0; i < 8 * a->v_bytes; i += 64)
    _mm_prefetch((const char *)a->v + pos * a->v_bytes + i, _MM_HINT_T1);
  for (size_t i = 0; !avx2_small_l1 && i < 8 * a->k_bytes; i += 64) fetch(k + i);
}

AVX2_INLINE void float_scores(const llm_type type, const int n_q, const chunk *c, size_t h) {
  const attention_args *a = c->a;
  const float *q = a->q + h * a->head_dim;
  for (size_t pos = c->from; pos + 8 <= c->to; pos += 8) {
    const char *k = (const char *)a->k + pos * a->k_bytes;
    __m256 pair[SIDE][4], two[SIDE];
    if (h == 0) ask_ahead(a, k, pos);
    UNROLL
    for (size_t i = 0; i < 4; i++) {
      dot_two(type, n_q, a, k + 2 * i * a->k_bytes, q, two);
      UNROLL
      for (int j = 0; j < n_q; j++) pair[j][i] = two[j];
    }
    UNROLL
    for (size_t j = 0; j < (size_t)n_q; j++)
      _mm256_storeu_ps(a->scores + (h + j) * a->n_pos + pos, sum_eight(pair[j]));
  }
}

/* What is left of a chunk, and heads of odd widths. */
AVX2_INLINE void few_scores(const llm_type type, const chunk *c, size_t from) {
  const attention_args *a = c->a;
  float_product p = {(const char *)a->k + from * a->k_bytes,
                     a->k_bytes,
                     c->to - from,
                     a->q,
                     a->n_q,
                     a->head_dim,
                     a->scores + from,
                     a->n_pos};
  if (type == LLM_TYPE_F16)
    float_product_f16_avx2(&p);
  else
    float_product_f32_avx2(&p);
}

/* ---- scores of keys in Q8_0 ---- */

AVX2 float round_query_avx2(const float *x, int16_t *q) {
  __m256 v[4], largest = _mm256_setzero_ps();
  UNROLL
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    largest = _mm256_max_ps(largest, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v[i]));
  }
  float amax = horizontal_max(largest);
  __m256 inverse = _mm256_set1_ps(amax < ACT_TINY ? 0 : 32767 / amax);
  UNROLL
  for (int i = 0; i < 4; i += 2) {
    __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(v[i + 1], inverse));
    __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    _mm256_storeu_si256((__m256i *)(q + 8 * i), both);
  }
  return amax < ACT_TINY ? 0 : amax / 32767;
}

/* Four keys' blocks from k on times n_q: the lower and the upper half of the lanes hold two parts
 * of the sums of positions 0 to 3. */
AVX2_INLINE void dot_four(const int n_q, const uint8_t *k, size_t row_bytes, int16_t q[SIDE][QK],
                          __m256i out[SIDE]) {
  __m256i x[4][2];
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    UNROLL
    for (size_t half = 0; half < 2; half++)
      x[i][half] = _mm256_cvtepi8_epi16(load16(k + i * row_bytes + 2 + 16 * half));
  }
  UNROLL
  for (int j = 0; j < n_q; j++) {
    __m256i low = _mm256_loadu_si256((const __m256i *)q[j]);
    __m256i high = _mm256_loadu_si256((const __m256i *)(q[j] + 16)), sum[4];
    UNROLL
    for (int i = 0; i < 4; i++)
      sum[i] = _mm256_add_epi32(_mm256_madd_epi16(x[i][0], low), _mm256_madd_epi16(x[i][1], high));
    out[j] =
        _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
  }
}

/* One block of eight keys from k on: sum[j] of the eight dots with query j. */
AVX2_INLINE void dot_eight(const int n_q, const uint8_t *k, size_t row_bytes, int16_t q[SIDE][QK],
                           const float *scale, __m256 sum[SIDE]) {
  __m256 key_scale, unused;
  __m256i low[SIDE], high[SIDE];
  dot_four(n_q, k, row_bytes, q, low);
  dot_four(n_q, k + 4 * row_bytes, row_bytes, q, high);
  load_scales(LLM_TYPE_Q8_0, k, row_bytes, &key_scale, &unused);
  UNROLL
  for (int j = 0; j < n_q; j++) {
    __m256i all = _mm256_add_epi32(_mm256_permute2x128_si256(low[j], high[j], 0x20),
                                   _mm256_permute2x128_si256(low[j], high[j], 0x31));
    __m256 scales = _mm256_mul_ps(key_scale, _mm256_set1_ps(scale[j]));
    sum[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all), scales, sum[j]);
  }
}

/* Where eight scores of a block come from and go to. */
typedef struct eight {
  const uint8_t *k;
  size_t k_bytes, ld; /* from one key, one query's scores to the next */
  float *y;
} eight;

/* Fewer than eight positions as copies, the scores so far in y; nothing is read past the last. */
typedef struct copied {
  block_q8_0 k[8];
  float y[SIDE][8];
} copied;

AVX2 static eight copy_last(const eight *e, size_t n, size_t n_q, int begins, copied *c) {
  memset(c, 0, sizeof *c);
  for (size_t i = 0; i < n; i++) memcpy(&c->k[i], e->k + i * e->k_bytes, sizeof c->k[i]);
  for (size_t j = 0; !begins && j < n_q; j++) memcpy(c->y[j], e->y + j * e->ld, n * sizeof *e->y);
  return (eight){(const uint8_t *)c->k, sizeof *c->k, 8, c->y[0]};
}

AVX2_INLINE void scores_q8_0(const int n_q, const chunk *c, size_t h) {
  const attention_args *a = c->a;
  for (size_t b = 0; b < a->head_dim / QK; b++) {
    int16_t q[SIDE][QK];
    float scale[SIDE];
    copied last;
    UNROLL
    for (size_t j = 0; j < (size_t)n_q; j++)
      scale[j] = round_query_avx2(a->q + (h + j) * a->head_dim + b * QK, q[j]);
    for (size_t pos = c->from; pos < c->to; pos += 8) {
      const size_t n = min_size(8, c->to - pos);
      const eight place = {(const uint8_t *)a->k + pos * a->k_bytes + b * sizeof(block_q8_0),
                           a->k_bytes, a->n_pos, a->scores + h * a->n_pos + pos};
      const eight e = n < 8 ? copy_last(&place, n, (size_t)n_q, b == 0, &last) : place;
      __m256 sum[SIDE];
      for (size_t i = 0; i < 8; i++) fetch((const char *)place.k + i * a->k_bytes);
      UNROLL
      for (size_t j = 0; j < (size_t)n_q; j++)
        sum[j] = b ? _mm256_loadu_ps(e.y + j * e.ld) : _mm256_setzero_ps();
      dot_eight(n_q, e.k, e.k_bytes, q, scale, sum);
      UNROLL
      for (size_t j = 0; j < (size_t)n_q; j++) _mm256_storeu_ps(e.y + j * e.ld, sum[j]);
      for (size_t j = 0; n < 8 && j < (size_t)n_q; j++)
        memcpy(place.y + j * place.ld, last.y[j], n * sizeof *place.y);
    }
  }
}

/* ---- softmax ---- */

/* exp(p - max) of the lanes in `used`, in place; the others count nothing: no lane of a sum is ever
 * -0, so that adding +0 leaves it. */
AVX2_INLINE __m256 exp_some(float *p, __m256 max, __m256i used) {
  __m256 e = expf8(_mm256_sub_ps(_mm256_maskload_ps(p, used), max));
  e = _mm256_and_ps(e, _mm256_castsi256_ps(used));
  _mm256_maskstore_ps(p, used, e);
  return e;
}

AVX2 static float softmax_avx2(float *p, size_t n, float scale, float *largest) {
  const __m256 scales = _mm256_set1_ps(scale);
  __m256 max = _mm256_set1_ps(-INFINITY), low = _mm256_setzero_ps(), high = low;
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(p + i), scales);
    _mm256_storeu_ps(p + i, v);
    max = _mm256_max_ps(max, v);
  }
  *largest = horizontal_max(max);
  for (; i < n; i++) {
    p[i] *= scale;
    *largest = p[i] > *largest ? p[i] : *largest;
  }
  max = _mm256_set1_ps(*largest);
  for (i = 0; i + LANES <= n; i += LANES) {
    __m256 e = expf8(_mm256_sub_ps(_mm256_loadu_ps(p + i), max));
    __m256 f = expf8(_mm256_sub_ps(_mm256_loadu_ps(p + i + 8), max));
    _mm256_storeu_ps(p + i, e);
    _mm256_storeu_ps(p + i + 8, f);
    low = _mm256_add_ps(low, e);
    high = _mm256_add_ps(high, f);
  }
  if (i < n) low = _mm256_add_ps(low, exp_some(p + i, max, first_lanes((int)(n - i))));
  if (i + 8 < n)
    high = _mm256_add_ps(high, exp_some(p + i + 8, max, first_lanes((int)(n - i) - 8)));
  return sum_lanes(low, high);
}

/* ---- values ---- */

/* Eight elements of a value from element d on; of Q8_0 the integers. */
AVX2_INLINE __m256 load_value(const llm_type type, const char *v, size_t d) {
  if (type != LLM_TYPE_Q8_0) return load8(type, v, d);
  const block_q8_0 *b = (const block_q8_0 *)v + d / QK;
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(b->q + d % QK))));
}

/* Adds the chunk to out[d] to out[d + 8 * n_reg - 1] of n_q heads. */
AVX2_INLINE void values_tile(const llm_type type, const int n_q, const int n_reg, const chunk *c,
                             const shares *s, size_t d) {
  const attention_args *a = c->a;
  const char *v = (const char *)a->v + c->from * a->v_bytes;
  float *out = a->out + s->h * a->head_dim + d;
  __m256 sum[SIDE][4];
  UNROLL
  for (size_t j = 0; j < (size_t)n_q; j++) {
    UNROLL
    for (size_t i = 0; i < (size_t)n_reg; i++)
      sum[j][i] = c->from ? _mm256_loadu_ps(out + j * a->head_dim + 8 * i) : _mm256_setzero_ps();
  }
  for (size_t pos = 0; pos < c->to - c->from; pos++, v += a->v_bytes) {
    __m256 p[SIDE];
    if (type == LLM_TYPE_Q8_0) fetch(v + d / QK * sizeof(block_q8_0));
    UNROLL
    for (size_t j = 0; j < (size_t)n_q; j++) p[j] = _mm256_broadcast_ss(s->p + j * s->stride + pos);
    UNROLL
    for (size_t i = 0; i < (size_t)n_reg; i++) {
      __m256 x = load_value(type, v, d + 8 * i);
      UNROLL
      for (int j = 0; j < n_q; j++) sum[j][i] = _mm256_fmadd_ps(p[j], x, sum[j][i]);
    }
  }
  UNROLL
  for (size_t j = 0; j < (size_t)n_q; j++) {
    UNROLL
    for (size_t i = 0; i < (size_t)n_reg; i++)
      _mm256_storeu_ps(out + j * a->head_dim + 8 * i, sum[j][i]);
  }
}

/* The elements from d on, fewer than 32 a head. */
AVX2 static void values_tail(llm_type type, size_t n_q, const chunk *c, const shares *s, size_t d) {
  for (size_t j = 0; j < n_q; j++) {
    const shares one = {s->p + j * s->stride, s->stride, s->h + j};
    for (size_t e = d; e + 8 <= c->a->head_dim; e += 8)
      if (type == LLM_TYPE_F16)
        values_tile(LLM_TYPE_F16, 1, 1, c, &one, e);
      else
        values_tile(LLM_TYPE_F32, 1, 1, c, &one, e);
  }
  add_tail(type, n_q, c, s, c->a->head_dim / 8 * 8);
}

AVX2_INLINE void float_values(const llm_type type, const int n_q, const chunk *c, size_t h) {
  const attention_args *a = c->a;
  const shares s = {a->scores + h * a->n_pos + c->from, a->n_pos, h};
  size_t d = 0;
  for (; d + 32 <= a->head_dim; d += 32) values_tile(type, n_q, 4, c, &s, d);
  if (d < a->head_dim) values_tail(type, (size_t)n_q, c, &s, d);
}

/* The shares of n_q heads from h on times the scales of block b, position by position. */
AVX2 static void scale_shares(size_t n_q, const chunk *c, size_t h, size_t b,
                              float scaled[SIDE][CHUNK]) {
  const attention_args *a = c->a;
  const size_t n = c->to - c->from;
  const float *p = a->scores + h * a->n_pos + c->from;
  const char *v = (const char *)a->v + c->from * a->v_bytes + b * sizeof(block_q8_0);
  size_t pos = 0;
  for (; pos + 8 <= n; pos += 8) {
    __m256 scale, unused;
    load_scales(LLM_TYPE_Q8_0, (const uint8_t *)v + pos * a->v_bytes, a->v_bytes, &scale, &unused);
    for (size_t j = 0; j < n_q; j++)
      _mm256_storeu_ps(scaled[j] + pos,
                       _mm256_mul_ps(_mm256_loadu_ps(p + j * a->n_pos + pos), scale));
  }
  for (; pos < n; pos++)
    for (size_t j = 0; j < n_q; j++)
      scaled[j][pos] =
          p[j * a->n_pos + pos] * _cvtsh_ss(((const block_q8_0 *)(v + pos * a->v_bytes))->d);
}

/* A block's scale goes to the positions' shares, its integers meet them. */
AVX2_INLINE void values_q8_0(const int n_q, const chunk *c, size_t h) {
  float scaled[SIDE][CHUNK];
  const shares s = {scaled[0], CHUNK, h};
  for (size_t b = 0; b < c->a->head_dim / QK; b++) {
    scale_shares((size_t)n_q, c, h, b, scaled);
    values_tile(LLM_TYPE_Q8_0, n_q, 4, c, &s, b * QK);
  }
}

/* ---- the whole ---- */

AVX2_INLINE void scores_of(const llm_type type, const int n_q, const chunk *c, size_t h) {
  if (type == LLM_TYPE_Q8_0)
    scores_q8_0(n_q, c, h);
  else
    float_scores(type, n_q, c, h);
}

AVX2_INLINE void values_of(const llm_type type, const int n_q, const chunk *c, size_t h) {
  if (type == LLM_TYPE_Q8_0)
    values_q8_0(n_q, c, h);
  else
    float_values(type, n_q, c, h);
}

AVX2_INLINE void chunk_scores(const llm_type type, const chunk *c) {
  const size_t whole = c->a->head_dim % LANES ? c->from : c->to - (c->to - c->from) % 8;
  if (type == LLM_TYPE_Q8_0 || whole > c->from) FOR_HEADS(scores_of);
  if (type != LLM_TYPE_Q8_0 && whole < c->to) few_scores(type, c, whole);
}

AVX2_INLINE void chunk_values(const llm_type type, const chunk *c) { FOR_HEADS(values_of); }

AVX2 static void attention_avx2(const attention_args *a) {
  chunk c = {.a = a};
  for (c.from = 0; c.from < a->n_pos; c.from = c.to) {
    c.to = min_size(c.from + CHUNK, a->n_pos);
    FOR_TYPES(a->k_type, chunk_scores, &c)
  }
  for (size_t h = 0; h < a->n_q; h++)
    a->sum[h] = softmax_avx2(a->scores + h * a->n_pos, a->n_pos, a->scale, &a->max[h]);
  for (c.from = 0; c.from < a->n_pos; c.from = c.to) {
    c.to = min_size(c.from + CHUNK, a->n_pos);
    FOR_TYPES(a->v_type, chunk_values, &c)
  }
  LEAVE_AVX();
}

void kernels_set_avx2_attention(kernels *k) { k->attention = attention_avx2; }
#endif
