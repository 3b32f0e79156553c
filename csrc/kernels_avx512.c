/* kernels_avx512.c: matrix products with float weights by AVX-512 F, BW, DQ, VL and VNNI, one
 * register of 16 lanes an output, and the table; quantized weights stand in kernels_avx512_quant.c
 * and kernels_avx512_panels.c, attention of many tokens in kernels_avx512_attention.c, everything
 * else is AVX2's. Layer 2. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx512.h"

static kernels below; /* the set that this one started from: takes odd widths and few rows */

/* ---- float weights ---- */

AVX512_INLINE __m512 load_lanes(const llm_type type, const void *src, size_t k) {
  if (type == LLM_TYPE_F32) return _mm512_loadu_ps((const float *)src + k);
  __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)src + k));
  if (type == LLM_TYPE_F16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

enum { TILE_ROWS = 4, MAX_TILE = 6 * TILE_ROWS };

AVX512_INLINE __m256 half(__m512 v, const int high) {
  return _mm256_castpd_ps(high ? _mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)
                               : _mm512_castpd512_pd256(_mm512_castps_pd(v)));
}

/* The sums of lanes: of one token's rows, which lie apart, or of an even number of tokens, whose
 * rows are neighbours. sum: (TILE_ROWS, n_tok). */
AVX512_INLINE void store_tile(const int n_tok, const __m512 *sum, float *y, size_t ldy,
                              size_t apart) {
  if (n_tok == 1) {
    UNROLL
    for (int i = 0; i < TILE_ROWS; i++)
      y[(size_t)i * apart] = sum_lanes(half(sum[i], 0), half(sum[i], 1));
    return;
  }
  UNROLL
  for (int j = 0; j < n_tok; j += 2, y += 2 * ldy) {
    __m256 pair[4]; /* two rows of a token */
    UNROLL
    for (int i = 0; i < 4; i++) {
      const __m512 *a = sum + i % 2 * 2 * n_tok + j + i / 2, *b = a + n_tok;
      pair[i] = halve_two(half(*a, 0), half(*a, 1), half(*b, 0), half(*b, 1));
    }
    const __m256 eight = sum_eight(pair);
    _mm_storeu_ps(y, _mm256_castps256_ps128(eight));
    _mm_storeu_ps(y + ldy, _mm256_extractf128_ps(eight, 1));
  }
}

/* Rows r, r + apart, ... times tokens t, t + 1, ... */
AVX512_INLINE void float_tile(const llm_type type, const int n_tok, const matmul_args *m, size_t r,
                              size_t apart, size_t t) {
  const int n_row = TILE_ROWS;
  const size_t n_in = m->act->n_in, row_bytes = n_in * (type == LLM_TYPE_F32 ? 4 : 2);
  const char *w = (const char *)m->w + r * row_bytes;
  const float *x = m->act->x + t * n_in;
  __m512 sum[MAX_TILE];
  UNROLL
  for (int i = 0; i < n_row * n_tok; i++) sum[i] = _mm512_setzero_ps();
  for (size_t k = 0; k < n_in; k += LANES) {
    __m512 wk[TILE_ROWS];
    if (n_tok > 1 && t == 0 && (type == LLM_TYPE_F32 || k % (2 * LANES) == 0)) {
      UNROLL
      for (size_t i = 0; i < n_row; i++)
        prefetch((const uint8_t *)w + i * row_bytes + k * (row_bytes / n_in));
    }
    UNROLL
    for (int i = 0; i < n_row; i++) wk[i] = load_lanes(type, w + (size_t)i * apart * row_bytes, k);
    UNROLL
    for (int j = 0; j < n_tok; j++) {
      __m512 xk = _mm512_loadu_ps(x + (size_t)j * n_in + k);
      UNROLL
      for (int i = 0; i < n_row; i++)
        sum[i * n_tok + j] = _mm512_fmadd_ps(wk[i], xk, sum[i * n_tok + j]);
    }
  }
  store_tile(n_tok, sum, m->y + t * m->ldy + r, m->ldy, apart);
}

/* The last four rows may be partly those before. */
AVX512_INLINE void float_rows(const llm_type type, const int n_tok, const matmul_args *m, size_t t,
                              size_t r0, size_t r1) {
  for (size_t r = r0; r < r1; r += 4) float_tile(type, n_tok, m, min_size(r, r1 - 4), 1, t);
}

enum { FLOAT_BLOCK_BYTES = 256 << 10 }; /* of weights that stay in L2 while all tokens pass */

AVX512_INLINE void float_matmul(const llm_type type, const matmul_args *m, size_t r0, size_t r1) {
  const size_t n_tok = m->act->n_tok, row_bytes = m->act->n_in * (type == LLM_TYPE_F32 ? 4 : 2);
  if (n_tok == 1) {
    const size_t apart = (r1 - r0) / 4;
    for (size_t r = r0; r < r0 + apart; r++) float_tile(type, 1, m, r, apart, 0);
    if ((r1 - r0) % 4) float_tile(type, 1, m, r1 - 4, 1, 0);
    return;
  }
  const size_t step = FLOAT_BLOCK_BYTES / row_bytes / 4 * 4 + 4;
  for (size_t b0 = r0; b0 < r1; b0 += step) {
    size_t b1 = min_size(b0 + step, r1), t = 0;
    if (b1 - b0 < 4) b0 = b1 - 4;
    for (; t + 6 <= n_tok; t += 6) float_rows(type, 6, m, t, b0, b1);
    for (; t < n_tok; t += 2) float_rows(type, 2, m, min_size(t, n_tok - 2), b0, b1);
  }
}

#define DEFINE_FLOAT_MATMUL(name, type)                                                            \
  AVX512 static void float_matmul_##name(const matmul_args *m, size_t r0, size_t r1) {             \
    float_matmul(type, m, r0, r1);                                                                 \
  }                                                                                                \
  static void matmul_##name##_avx512(const matmul_args *m, size_t r0, size_t r1, void *scratch) {  \
    if (m->act->n_in % LANES || r1 - r0 < 4)                                                       \
      below.matmul[type](m, r0, r1, scratch);                                                      \
    else                                                                                           \
      float_matmul_##name(m, r0, r1);                                                              \
  }

DEFINE_FLOAT_MATMUL(f32, LLM_TYPE_F32)
DEFINE_FLOAT_MATMUL(f16, LLM_TYPE_F16)
DEFINE_FLOAT_MATMUL(bf16, LLM_TYPE_BF16)

/* ---- quantized weights ---- */

static size_t scratch_bytes_avx512(size_t n_in) {
  size_t n = below.scratch_bytes(n_in);
  if (n_in % QK) return n;
  if (n < decode_scratch_avx512(n_in)) n = decode_scratch_avx512(n_in);
  return n < prefill_scratch_avx512(n_in) ? prefill_scratch_avx512(n_in) : n;
}

/* Whether one token goes through this file's kernel. Zen 4, which has the small L1 and splits every
 * operation of 512 bits in two, is faster by AVX2's where unpacking is cheap there. */
static int decodes(llm_type type) {
  return !avx2_small_l1 || type == LLM_TYPE_Q8_0 || type == LLM_TYPE_Q5_K || type == LLM_TYPE_Q6_K;
}

#define DEFINE_QUANTIZED_MATMUL(name, type)                                                        \
  static void matmul_##name##_avx512(const matmul_args *m, size_t r0, size_t r1, void *scratch) {  \
    if (m->act->n_tok == 1 && decodes(type) && m->n_out >= 4)                                      \
      decode_##name##_avx512(m, r0, r1, scratch);                                                  \
    else if (m->act->n_tok > 1 && m->n_out >= 16)                                                  \
      prefill_##name##_avx512(m, r0, r1, scratch);                                                 \
    else                                                                                           \
      below.matmul[type](m, r0, r1, scratch);                                                      \
  }
FOR_QUANTIZED_TYPES(DEFINE_QUANTIZED_MATMUL)

void kernels_set_avx512(kernels *k) {
  below = *k;
  k->scratch_bytes = scratch_bytes_avx512;
  k->matmul[LLM_TYPE_F32] = matmul_f32_avx512;
  k->matmul[LLM_TYPE_F16] = matmul_f16_avx512;
  k->matmul[LLM_TYPE_BF16] = matmul_bf16_avx512;
#define SET_QUANTIZED(name, type) k->matmul[type] = matmul_##name##_avx512;
  FOR_QUANTIZED_TYPES(SET_QUANTIZED)
  kernels_set_avx512_attention(k);
}
#endif
