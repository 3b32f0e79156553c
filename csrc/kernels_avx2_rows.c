/* kernels_avx2_rows.c: attention, activations' rounding, norms and the rest that works on rows,
 * with AVX2, FMA and F16C. Layer 2. What is left of a row behind the last whole register goes to
 * the set below, whose operations are the same. */
#include "kernels.h"

#if defined(__x86_64__)
#include <math.h>

#include "kernels_avx2.h"
#include "numeric.h"

static kernels below;

/* num_expf, eight at a time. */
AVX2_INLINE __m256 expf8(__m256 x) {
  const __m256 magic = _mm256_set1_ps(EXPF_MAGIC);
  __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(EXPF_LOG2E), magic);
  __m256 n = _mm256_sub_ps(shifted, magic);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EXPF_LN2_HIGH), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EXPF_LN2_LOW), r);
  __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(EXPF_P5), r, _mm256_set1_ps(EXPF_P4));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P3));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P2));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P1));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P0));
  __m256 y = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1));
  __m256i bits = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(magic));
  y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(bits, 23)));
  y = _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(EXPF_MIN), _CMP_LT_OQ), y);
  y = _mm256_blendv_ps(y, _mm256_set1_ps(INFINITY),
                       _mm256_cmp_ps(x, _mm256_set1_ps(EXPF_MAX), _CMP_GT_OQ));
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

/* ---- attention ---- */

AVX2_INLINE float horizontal_max(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* p = num_expf(p * scale - max) in place; returns 1 / their sum in 16 lanes. */
AVX2 static float softmax(float *p, size_t n, float scale) {
  const __m256 scales = _mm256_set1_ps(scale);
  const size_t n_whole = n / 8 * 8;
  const __m256i tail = first_lanes((int)(n - n_whole));
  __m256 maxima = _mm256_set1_ps(-INFINITY);
  for (size_t i = 0; i < n_whole; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(p + i), scales);
    _mm256_storeu_ps(p + i, v);
    maxima = _mm256_max_ps(maxima, v);
  }
  float max = horizontal_max(maxima);
  for (size_t i = n_whole; i < n; i++) {
    p[i] *= scale;
    max = p[i] > max ? p[i] : max;
  }
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (size_t i = 0; i < n_whole; i += 8) {
    __m256 e = expf8(_mm256_sub_ps(_mm256_loadu_ps(p + i), _mm256_set1_ps(max)));
    _mm256_storeu_ps(p + i, e);
    sum[i / 8 % 2] = _mm256_add_ps(sum[i / 8 % 2], e);
  }
  if (n_whole < n) { /* lanes stay at their value by adding +0: none is ever -0 */
    __m256 e = _mm256_sub_ps(_mm256_maskload_ps(p + n_whole, tail), _mm256_set1_ps(max));
    e = _mm256_and_ps(expf8(e), _mm256_castsi256_ps(tail));
    _mm256_maskstore_ps(p + n_whole, tail, e);
    sum[n_whole / 8 % 2] = _mm256_add_ps(sum[n_whole / 8 % 2], e);
  }
  return 1.0f / sum_lanes(sum[0], sum[1]);
}

/* out[d] of 8 * n_reg values from d on, for n_q heads from h on. */
AVX2_INLINE void values_tile(const llm_type type, const int n_q, const int n_reg,
                             const attention_args *a, const float *inverse, size_t h, size_t d) {
  const char *v = a->v;
  __m256 sum[3][4];
  UNROLL
  for (int j = 0; j < n_q; j++) {
    UNROLL
    for (int i = 0; i < n_reg; i++) sum[j][i] = _mm256_setzero_ps();
  }
  for (size_t pos = 0; pos < a->n_pos; pos++, v += a->v_bytes) {
    __m256 p[3];
    UNROLL
    for (int j = 0; j < n_q; j++)
      p[j] = _mm256_broadcast_ss(a->scores + (h + (size_t)j) * a->n_pos + pos);
    UNROLL
    for (int i = 0; i < n_reg; i++) {
      __m256 x = load8(type, v, d + 8 * (size_t)i);
      UNROLL
      for (int j = 0; j < n_q; j++) sum[j][i] = _mm256_fmadd_ps(p[j], x, sum[j][i]);
    }
  }
  UNROLL
  for (int j = 0; j < n_q; j++) {
    UNROLL
    for (int i = 0; i < n_reg; i++)
      _mm256_storeu_ps(a->out + (h + (size_t)j) * a->head_dim + d + 8 * (size_t)i,
                       _mm256_mul_ps(sum[j][i], _mm256_set1_ps(inverse[h + (size_t)j])));
  }
}

/* The values behind the last whole register, one at a time; a row of Q8_0 has none. */
AVX2_INLINE void values_tail(const llm_type type, const attention_args *a, const float *inverse,
                             size_t h, size_t d) {
  for (; d < a->head_dim; d++) {
    float sum = 0;
    for (size_t pos = 0; pos < a->n_pos; pos++) {
      const char *row = (const char *)a->v + pos * a->v_bytes;
      float v =
          type == LLM_TYPE_F16 ? f16_to_f32(((const uint16_t *)row)[d]) : ((const float *)row)[d];
      sum = fmaf(a->scores[h * a->n_pos + pos], v, sum);
    }
    a->out[h * a->head_dim + d] = sum * inverse[h];
  }
}

AVX2_INLINE void values(const llm_type type, const int n_q, const attention_args *a,
                        const float *inverse, size_t h) {
  size_t d = 0;
  for (; d + 32 <= a->head_dim; d += 32) values_tile(type, n_q, 4, a, inverse, h, d);
  for (; d + 8 <= a->head_dim; d += 8) values_tile(type, n_q, 1, a, inverse, h, d);
  if (type == LLM_TYPE_Q8_0) return;
  for (int j = 0; j < n_q; j++) values_tail(type, a, inverse, h + (size_t)j, d);
}

enum { MAX_HEADS = 16 }; /* query heads in one pass over the keys */

static void scores(const attention_args *a) {
  float_product p = {a->k, a->k_bytes, a->n_pos, a->q, a->n_q, a->head_dim, a->scores, a->n_pos};
  if (a->k_type == LLM_TYPE_F16)
    float_product_f16_avx2(&p);
  else if (a->k_type == LLM_TYPE_Q8_0)
    float_product_q8_0_avx2(&p);
  else
    float_product_f32_avx2(&p);
}

AVX2_INLINE void all_values(const llm_type type, const attention_args *a, const float *inverse) {
  size_t h = 0;
  for (; h + 3 <= a->n_q; h += 3) values(type, 3, a, inverse, h);
  if (a->n_q - h == 2) values(type, 2, a, inverse, h);
  if (a->n_q - h == 1) values(type, 1, a, inverse, h);
}

/* At most MAX_HEADS query heads. */
AVX2 static void attention_heads(const attention_args *a) {
  float inverse[MAX_HEADS];
  scores(a);
  for (size_t h = 0; h < a->n_q; h++)
    inverse[h] = softmax(a->scores + h * a->n_pos, a->n_pos, a->scale);
  if (a->v_type == LLM_TYPE_F16)
    all_values(LLM_TYPE_F16, a, inverse);
  else if (a->v_type == LLM_TYPE_Q8_0)
    all_values(LLM_TYPE_Q8_0, a, inverse);
  else
    all_values(LLM_TYPE_F32, a, inverse);
}

static void attention_avx2(const attention_args *a) {
  attention_args part = *a;
  for (size_t h = 0; h < a->n_q; h += MAX_HEADS) {
    part.n_q = a->n_q - h < MAX_HEADS ? a->n_q - h : MAX_HEADS;
    part.q = a->q + h * a->head_dim;
    part.out = a->out + h * a->head_dim;
    attention_heads(&part);
  }
}

/* ---- rows ---- */

AVX2_INLINE __m256 abs8(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

AVX2_INLINE int32_t horizontal_sum(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

AVX2 static void quantize_row_avx2(const float *x, size_t n, int8_t *q, float *scale,
                                   float *scaled_sum, int32_t *sum) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* undoes the packs */
  for (size_t b = 0; b < n / QK; b++, x += QK, q += QK) {
    __m256 v[4], largest = _mm256_setzero_ps();
    UNROLL
    for (int i = 0; i < 4; i++) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      largest = _mm256_max_ps(largest, abs8(v[i]));
    }
    float amax = horizontal_max(largest);
    __m256 inverse = _mm256_set1_ps(amax < ACT_TINY ? 0 : 127 / amax);
    __m256i k[4];
    UNROLL
    for (int i = 0; i < 4; i++) k[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i total = _mm256_add_epi32(_mm256_add_epi32(k[0], k[1]), _mm256_add_epi32(k[2], k[3]));
    __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(k[0], k[1]), _mm256_packs_epi32(k[2], k[3]));
    _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(bytes, order));
    scale[b] = amax < ACT_TINY ? 0 : amax / 127;
    sum[b] = horizontal_sum(total);
    scaled_sum[b] = scale[b] * (float)sum[b];
  }
}

/* 1 / sqrt(mean of squares + eps) */
AVX2 static float inverse_rms(const float *x, size_t n, float eps) {
  float sum;
  float_product square = {(const char *)x, n * sizeof *x, 1, x, 1, n, &sum, 0};
  float_product_f32_avx2(&square);
  return 1.0f / __builtin_sqrtf(sum / (float)n + eps);
}

AVX2 static void rmsnorm_avx2(float *y, const float *x, const float *w, size_t n, float eps) {
  float r = inverse_rms(x, n, eps);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(r));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(w + i)));
  }
  for (; i < n; i++) y[i] = x[i] * r * w[i];
}

AVX2 static float sum_of(const float *x, size_t n) {
  const size_t n_whole = n / 8 * 8;
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (size_t i = 0; i < n_whole; i += 8)
    sum[i / 8 % 2] = _mm256_add_ps(sum[i / 8 % 2], _mm256_loadu_ps(x + i));
  if (n_whole < n) { /* as in softmax: adding +0 changes no lane */
    __m256 tail = _mm256_maskload_ps(x + n_whole, first_lanes((int)(n - n_whole)));
    sum[n_whole / 8 % 2] = _mm256_add_ps(sum[n_whole / 8 % 2], tail);
  }
  return sum_lanes(sum[0], sum[1]);
}

AVX2 static void layernorm_avx2(float *y, const float *x, const float *w, const float *b, size_t n,
                                float eps) {
  float mean = sum_of(x, n) / (float)n;
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i, _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(mean)));
  for (; i < n; i++) y[i] = x[i] - mean;
  float r = inverse_rms(y, n, eps);
  for (i = 0; i + 8 <= n; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(r));
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(v, _mm256_loadu_ps(w + i), _mm256_loadu_ps(b + i)));
  }
  for (; i < n; i++) y[i] = fmaf(y[i] * r, w[i], b[i]);
}

AVX2 static void swiglu_avx2(float *y, const float *gate, const float *up, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 g = _mm256_loadu_ps(gate + i);
    __m256 e = expf8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    __m256 s = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1), e));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(s, _mm256_loadu_ps(up + i)));
  }
  below.swiglu(y + i, gate + i, up + i, n - i);
}

AVX2_INLINE __m256 gelu8(__m256 x) {
  __m256 slope =
      _mm256_fmadd_ps(_mm256_set1_ps(GELU_B), _mm256_mul_ps(x, x), _mm256_set1_ps(GELU_A));
  __m256 e = expf8(_mm256_mul_ps(x, slope));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1), e));
}

AVX2 static void gelu_avx2(float *y, const float *x, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, gelu8(_mm256_loadu_ps(x + i)));
  below.gelu(y + i, x + i, n - i);
}

AVX2 static void geglu_avx2(float *y, const float *gate, const float *up, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 g = gelu8(_mm256_loadu_ps(gate + i));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(g, _mm256_loadu_ps(up + i)));
  }
  below.geglu(y + i, gate + i, up + i, n - i);
}

AVX2 static void add_avx2(float *x, const float *y, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  below.add(x + i, y + i, n - i);
}

AVX2 static void rope_avx2(float *x, const float *cos, const float *sin, size_t n_pair) {
  size_t i = 0;
  for (; i + 4 <= n_pair; i += 4) {
    __m256 v = _mm256_loadu_ps(x + 2 * i);
    __m128 c = _mm_loadu_ps(cos + i), s = _mm_loadu_ps(sin + i);
    __m256 cs = _mm256_set_m128(_mm_unpackhi_ps(c, s), _mm_unpacklo_ps(c, s));
    __m256 sc = _mm256_set_m128(_mm_unpackhi_ps(s, c), _mm_unpacklo_ps(s, c));
    __m256 b = _mm256_mul_ps(_mm256_movehdup_ps(v), sc); /* b s, b c */
    _mm256_storeu_ps(x + 2 * i, _mm256_fmaddsub_ps(_mm256_moveldup_ps(v), cs, b));
  }
  below.rope(x + 2 * i, cos + i, sin + i, n_pair - i);
}

AVX2 static void rope_halves_avx2(float *x, const float *cos, const float *sin, size_t n_pair) {
  float *y = x + n_pair;
  size_t i = 0;
  for (; i + 8 <= n_pair; i += 8) {
    __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(y + i);
    __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
    _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
  }
  for (; i < n_pair; i++) {
    float a = x[i], b = y[i];
    x[i] = fmaf(a, cos[i], -(b * sin[i]));
    y[i] = fmaf(a, sin[i], b * cos[i]);
  }
}

AVX2 static void f32_to_f16_avx2(uint16_t *dst, const float *src, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  below.f32_to_f16(dst + i, src + i, n - i);
}

void kernels_set_avx2_rows(kernels *k) {
  below = *k;
  k->attention = attention_avx2;
  k->quantize_row = quantize_row_avx2;
  k->rmsnorm = rmsnorm_avx2;
  k->layernorm = layernorm_avx2;
  k->swiglu = swiglu_avx2;
  k->gelu = gelu_avx2;
  k->geglu = geglu_avx2;
  k->add = add_avx2;
  k->rope = rope_avx2;
  k->rope_halves = rope_halves_avx2;
  k->f32_to_f16 = f32_to_f16_avx2;
}
#endif
