/* kernels_avx2_rows.c: activations' rounding, norms and the rest that works on rows, with AVX2, FMA
 * and F16C. Layer 2. What is left of a row behind the last whole register goes to the set below,
 * whose operations are the same. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx2.h"

static kernels below;

AVX2_INLINE __m256 abs8(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

AVX2_INLINE int32_t horizontal_sum(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

AVX2 static void quantize_row_avx2(const float *x, size_t n, act_block *q) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* undoes the packs */
  for (size_t b = 0; b < n / QK; b++, x += QK, q++) {
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
    __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(k[0], k[1]), _mm256_packs_epi32(k[2], k[3]));
    _mm256_storeu_si256((__m256i *)q->q, _mm256_permutevar8x32_epi32(bytes, order));
    q->scale = amax < ACT_TINY ? 0 : amax / 127;
    q->sum_of_half = horizontal_sum(_mm256_add_epi32(k[0], k[1]));
    q->sum = q->sum_of_half + horizontal_sum(_mm256_add_epi32(k[2], k[3]));
    q->scaled_sum = q->scale * (float)q->sum;
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
