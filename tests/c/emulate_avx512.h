/* emulate_avx512.h: AVX-512 for machines without it, so that test_avx512_emulated.c can run
 * kernels_avx512.c: SIMDe's portable versions (Debian: libsimde-dev, 0.7.4) and, below, what SIMDe
 * has not. AVX2 stays native. */
#ifndef LLM_TEST_EMULATE_AVX512_H
#define LLM_TEST_EMULATE_AVX512_H

#include <immintrin.h>
#include <string.h>

#include <simde/x86/avx512.h>

#define AVX512  /* no target attribute: AVX2 is on for the whole file */
#define __m512  simde__m512
#define __m512d simde__m512d
#define __m512i simde__m512i

#define _mm512_add_epi32       simde_mm512_add_epi32
#define _mm512_and_si512       simde_mm512_and_si512
#define _mm512_broadcast_i64x4 simde_mm512_broadcast_i64x4
#define _mm512_castpd512_pd256 simde_mm512_castpd512_pd256
#define _mm512_castps256_ps512 simde_mm512_castps256_ps512
#define _mm512_castps_pd       simde_mm512_castps_pd
#define _mm512_castsi256_si512 simde_mm512_castsi256_si512
#define _mm512_castsi512_ps    simde_mm512_castsi512_ps
#define _mm512_castsi512_si256 simde_mm512_castsi512_si256
#define _mm512_dpbusd_epi32    simde_mm512_dpbusd_epi32
#undef _mm512_dpwssd_epi32
#define _mm512_dpwssd_epi32 simde_mm512_dpwssd_epi32
#undef _mm512_extractf32x4_ps /* these may be macros already */
#undef _mm512_extractf64x4_pd
#undef _mm512_setr_epi32
#undef _mm512_inserti64x4
#undef _mm512_shuffle_i32x4
#define _mm512_extractf32x4_ps         simde_mm512_extractf32x4_ps
#define _mm512_extractf64x4_pd         simde_mm512_extractf64x4_pd
#define _mm512_fmadd_ps                simde_mm512_fmadd_ps
#define _mm512_inserti64x4             simde_mm512_inserti64x4
#define _mm512_shuffle_i32x4           simde_mm512_shuffle_i32x4
#define _mm512_load_ps                 simde_mm512_load_ps
#define _mm512_load_si512              simde_mm512_load_si512
#define _mm512_loadu_ps                simde_mm512_loadu_ps
#define _mm512_loadu_si512             simde_mm512_loadu_si512
#define _mm512_mask_permutexvar_epi16  simde_mm512_mask_permutexvar_epi16
#define _mm512_mask_permutexvar_epi32  simde_mm512_mask_permutexvar_epi32
#define _mm512_mul_ps                  simde_mm512_mul_ps
#define _mm512_set1_epi32              simde_mm512_set1_epi32
#define _mm512_set1_epi8               simde_mm512_set1_epi8
#define _mm512_set1_ps                 simde_mm512_set1_ps
#define _mm512_setr_epi32              simde_mm512_setr_epi32
#define _mm512_setzero_ps              simde_mm512_setzero_ps
#define _mm512_setzero_si512           simde_mm512_setzero_si512
#define _mm512_slli_epi32              simde_mm512_slli_epi32
#define _mm512_srli_epi16              simde_mm512_srli_epi16
#define _mm512_srli_epi32              simde_mm512_srli_epi32
#define _mm512_store_si512             simde_mm512_store_si512
#define _mm512_storeu_ps               simde_mm512_storeu_ps
#define _mm512_sub_epi32               simde_mm512_sub_epi32
#define _mm512_sub_epi8                simde_mm512_sub_epi8
#define _mm512_unpackhi_epi32          simde_mm512_unpackhi_epi32
#define _mm512_unpackhi_epi64          simde_mm512_unpackhi_epi64
#define _mm512_unpacklo_epi32          simde_mm512_unpacklo_epi32
#define _mm512_unpacklo_epi64          simde_mm512_unpacklo_epi64
#define _mm512_xor_si512               simde_mm512_xor_si512
#define _mm512_broadcast_i32x4         simde_mm512_broadcast_i32x4
#define _mm512_mask_add_epi8           simde_mm512_mask_add_epi8
#define _mm512_or_si512                simde_mm512_or_si512
#define _mm512_set1_epi64              simde_mm512_set1_epi64
#define _mm512_shuffle_epi8            simde_mm512_shuffle_epi8
#define _mm512_slli_epi16              simde_mm512_slli_epi16
#define _mm512_store_ps                simde_mm512_store_ps
#define _mm512_storeu_si512            simde_mm512_storeu_si512
#define _mm512_sub_ps                  simde_mm512_sub_ps
#define _mm512_test_epi8_mask          simde_mm512_test_epi8_mask
#define _mm512_maskz_permutexvar_epi16 simde_mm512_maskz_permutexvar_epi16
#define _mm512_permutexvar_epi32       simde_mm512_permutexvar_epi32
#define _mm512_srlv_epi16              simde_mm512_srlv_epi16
#define _mm512_add_ps                  simde_mm512_add_ps
#define _mm512_castps_si512            simde_mm512_castps_si512
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask  simde_mm512_cmp_ps_mask
#define _mm512_mask_max_ps  simde_mm512_mask_max_ps
#define _mm512_mask_mov_ps  simde_mm512_mask_mov_ps
#define _mm512_maskz_mov_ps simde_mm512_maskz_mov_ps

/* ---- missing in SIMDe ---- */

#define _mm512_cvtph_ps         emulated_cvtph_ps
#define _mm512_cvtepu16_epi32   emulated_cvtepu16_epi32
#define _mm512_cvtepi32_ps      emulated_cvtepi32_ps
#define _mm512_cvtepi32_epi16   emulated_cvtepi32_epi16
#define _mm512_srai_epi32       emulated_srai_epi32
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#define _mm512_mask_storeu_ps   emulated_mask_storeu_ps
#define _mm512_srl_epi16        emulated_srl_epi16

static inline simde__m512i emulated_srai_epi32(simde__m512i v, unsigned n) {
  int32_t dwords[16];
  memcpy(dwords, &v, sizeof dwords);
  for (int i = 0; i < 16; i++) dwords[i] >>= n;
  return simde_mm512_loadu_si512(dwords);
}

static inline simde__m512i emulated_srl_epi16(simde__m512i v, __m128i n) {
  uint16_t words[32];
  memcpy(words, &v, sizeof words);
  for (int i = 0; i < 32; i++) words[i] = (uint16_t)(words[i] >> _mm_cvtsi128_si32(n));
  return simde_mm512_loadu_si512(words);
}

static inline simde__m512 emulated_cvtph_ps(__m256i h) {
  float f[16];
  _mm256_storeu_ps(f, _mm256_cvtph_ps(_mm256_castsi256_si128(h)));
  _mm256_storeu_ps(f + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)));
  return simde_mm512_loadu_ps(f);
}

static inline simde__m512i emulated_cvtepu16_epi32(__m256i h) {
  uint16_t words[16];
  uint32_t dwords[16];
  memcpy(words, &h, sizeof words);
  for (int i = 0; i < 16; i++) dwords[i] = words[i];
  return simde_mm512_loadu_si512(dwords);
}

static inline simde__m512 emulated_cvtepi32_ps(simde__m512i v) {
  int32_t dwords[16];
  float f[16];
  memcpy(dwords, &v, sizeof dwords);
  for (int i = 0; i < 16; i++) f[i] = (float)dwords[i];
  return simde_mm512_loadu_ps(f);
}

static inline __m256i emulated_cvtepi32_epi16(simde__m512i v) {
  int32_t dwords[16];
  int16_t words[16];
  memcpy(dwords, &v, sizeof dwords);
  for (int i = 0; i < 16; i++) words[i] = (int16_t)dwords[i];
  return _mm256_loadu_si256((const __m256i *)words);
}

/* Bytes behind the mask are not touched, as on the processor. */
static inline simde__m512i emulated_maskz_loadu_epi8(simde__mmask64 mask, const void *src) {
  uint8_t bytes[64] = {0};
  for (int i = 0; i < 64; i++)
    if (mask >> i & 1) bytes[i] = ((const uint8_t *)src)[i];
  return simde_mm512_loadu_si512(bytes);
}

static inline void emulated_mask_storeu_ps(float *dst, simde__mmask16 mask, simde__m512 v) {
  float f[16];
  memcpy(f, &v, sizeof f);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) dst[i] = f[i];
}

#endif
