/* kernels_avx2.h: what the AVX2 files share: the sum of lanes, expansion of float types and
 * block scales, and float products (matrix rows times tokens, or keys times queries). Layer 2. */
#ifndef LLM_KERNELS_AVX2_H
#define LLM_KERNELS_AVX2_H

#include <immintrin.h>
#include <math.h>

#include "kernels_simd.h"
#include "numeric.h"

#define AVX2        __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE static inline __attribute__((always_inline)) AVX2

/* The value exists in a register here. gcc 12 otherwise repeats a load in every instruction that
 * uses it, and regroups integer sums into trees that do not fit the registers. */
#define KEEP(v) __asm__("" : "+x"(v))

void float_product_f32_avx2(const float_product *p);
void float_product_f16_avx2(const float_product *p);
void float_product_bf16_avx2(const float_product *p);

void kernels_set_avx2_quant(kernels *k); /* products with quantized weights */
void kernels_set_avx2_rows(kernels *k);  /* everything that works on rows */
void kernels_set_avx2_attention(kernels *k);

/* x (32) of a query in 16 bits, rounded to q (32) as kernels.h says; returns their scale. Vector
 * code calls it: it does not leave AVX. */
float round_query_avx2(const float *x, int16_t *q);

/* The last act of what is called from elsewhere: SSE code, which all the rest is, runs at half its
 * speed or less while the upper halves of registers hold something. gcc does it by itself, but not
 * in files that it makes small. */
#define LEAVE_AVX() _mm256_zeroupper()

/* Where L1 is small (32 KiB: Zen 4), lines are fetched into L2, or they would be gone again before
 * they are read. Elsewhere (48 KiB: Zen 5) into L1, each asked for three times: a single request is
 * lost when the miss buffers are full. */
extern int avx2_small_l1;
AVX2_INLINE void prefetch(const uint8_t *p) {
  if (avx2_small_l1) {
    _mm_prefetch((const char *)p + (16 << 10), _MM_HINT_T1);
    _mm_prefetch((const char *)p + (24 << 10), _MM_HINT_T1);
    return;
  }
  _mm_prefetch((const char *)p + (16 << 10), _MM_HINT_T0);
  _mm_prefetch((const char *)p + (20 << 10), _MM_HINT_T0);
  _mm_prefetch((const char *)p + (24 << 10), _MM_HINT_T0);
}

/* Eight elements from element k on, a multiple of 8. */
AVX2_INLINE __m256 load8(const llm_type type, const void *src, size_t k) {
  if (type == LLM_TYPE_F32) return _mm256_loadu_ps((const float *)src + k);
  __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)src + k));
  if (type == LLM_TYPE_F16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

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

AVX2_INLINE float horizontal_max(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* Lanes 0 to 7 in low, 8 to 15 in high. */
AVX2_INLINE float sum_lanes(__m256 low, __m256 high) {
  __m256 eight = _mm256_add_ps(low, high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Lanes l + 8, then l + 4 added, of two dots, each of lanes 0 to 7 and 8 to 15: their sums of four
 * lanes side by side. */
AVX2_INLINE __m256 halve_two(__m256 a_low, __m256 a_high, __m256 b_low, __m256 b_high) {
  __m256 a = _mm256_add_ps(a_low, a_high), b = _mm256_add_ps(b_low, b_high);
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/* Of four such pairs: the eight results in order. */
AVX2_INLINE __m256 sum_eight(const __m256 v[4]) {
  __m256 a =
      _mm256_add_ps(_mm256_shuffle_ps(v[0], v[1], 0x44), _mm256_shuffle_ps(v[0], v[1], 0xee));
  __m256 b =
      _mm256_add_ps(_mm256_shuffle_ps(v[2], v[3], 0x44), _mm256_shuffle_ps(v[2], v[3], 0xee));
  __m256 even_odd = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
  return _mm256_permutevar8x32_ps(even_odd, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* All ones in the first n lanes of 8 (n may be negative or more). */
AVX2_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

AVX2_INLINE __m128i load16(const void *p) { return _mm_loadu_si128(p); }

/* The scales, and the minima of types that have them, of one block in 8 rows, row_bytes apart. */
AVX2_INLINE void load_scales(const llm_type type, const uint8_t *p, size_t row_bytes, __m256 *scale,
                             __m256 *minimum) {
  const uint8_t *p4 = p + 4 * row_bytes;
  const size_t two = 2 * row_bytes, three = 3 * row_bytes;
  if (type_has_minimum(type)) { /* scale and minimum are one dword */
    __m128i a = _mm_cvtsi32_si128(load_i32(p)), b = _mm_cvtsi32_si128(load_i32(p4));
    a = _mm_insert_epi32(a, load_i32(p + row_bytes), 1);
    b = _mm_insert_epi32(b, load_i32(p4 + row_bytes), 1);
    a = _mm_insert_epi32(a, load_i32(p + two), 2);
    b = _mm_insert_epi32(b, load_i32(p4 + two), 2);
    a = _mm_insert_epi32(a, load_i32(p + three), 3);
    b = _mm_insert_epi32(b, load_i32(p4 + three), 3);
    const __m128i low = _mm_set1_epi32(0xffff);
    *scale = _mm256_cvtph_ps(_mm_packus_epi32(_mm_and_si128(a, low), _mm_and_si128(b, low)));
    *minimum = _mm256_cvtph_ps(_mm_packus_epi32(_mm_srli_epi32(a, 16), _mm_srli_epi32(b, 16)));
    return;
  }
  __m128i h = _mm_cvtsi32_si128(load_u16(p));
  h = _mm_insert_epi16(h, load_u16(p + row_bytes), 1);
  h = _mm_insert_epi16(h, load_u16(p + two), 2);
  h = _mm_insert_epi16(h, load_u16(p + three), 3);
  h = _mm_insert_epi16(h, load_u16(p4), 4);
  h = _mm_insert_epi16(h, load_u16(p4 + row_bytes), 5);
  h = _mm_insert_epi16(h, load_u16(p4 + two), 6);
  h = _mm_insert_epi16(h, load_u16(p4 + three), 7);
  *scale = *minimum = _mm256_cvtph_ps(h);
}

#endif
