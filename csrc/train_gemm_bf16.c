/* train_gemm_bf16.c: the tile and the packing of a product that rounds its operands to bfloat16
 * (nearest even) and sums in float32, for processors with vdpbf16ps. Layer T. The rest of the
 * product is train_gemm.c.
 *
 * Matrices stay float32 in memory: they are rounded while they are packed, so nothing else knows of
 * bfloat16. A packed element is a dword, two neighbours in k; an odd k ends with a zero. */
#include "train_ops.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { MR = 8, NR = 48, LANES = 16, AHEAD = 48 };

/* ---- packing ---- */

#define BF16 TARGET_AVX512_BF16 PORT_INLINE

/* n floats, at least 32 or followed by zeros, as 16 dwords: dword i is the pair of floats 2i. */
BF16 __m512i round_row(const float *x, size_t n) {
  if (n >= 2 * LANES)
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + LANES), _mm512_loadu_ps(x));
  const __mmask32 mask = (1u << n) - 1;
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps((__mmask16)(mask >> LANES), x + LANES),
                                      _mm512_maskz_loadu_ps((__mmask16)mask, x));
}

/* Dword i is the pair (x[i], y[i]). */
BF16 __m512i round_pairs(__m512 x, __m512 y) {
  const __m512i even = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                        8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(even, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

/* r[i] lane j <-> r[j] lane i, 16 x 16 dwords. */
BF16 void transpose16(__m512i *r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) { /* pairs of rows, within 128-bit quarters */
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) { /* fours of rows */
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) { /* quarters */
    const __m512i x0 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i x1 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i y0 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i y1 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(x0, y0, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(x0, y0, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(x1, y1, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(x1, y1, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* n_rows (1 or 2) rows of n columns as 16 pairs, one column's two rows each; past the ends are
 * zeros. */
BF16 __m512i round_two_rows(const float *x, size_t ld, size_t n_rows, size_t n) {
  if (n >= LANES && n_rows == 2) return round_pairs(_mm512_loadu_ps(x), _mm512_loadu_ps(x + ld));
  const __mmask16 mask = (__mmask16)(n < LANES ? (1u << n) - 1 : 0xffff);
  return round_pairs(_mm512_maskz_loadu_ps(mask, x),
                     _mm512_maskz_loadu_ps(n_rows == 2 ? mask : 0, x + ld));
}

/* Rows of a tall matrix are too far apart for the processor to guess. */
BF16 void fetch_two_rows(const float *x, size_t ld, size_t p, size_t k) {
  _mm_prefetch((const char *)(x + min_size(p + AHEAD, k - 1) * ld), _MM_HINT_T0);
  _mm_prefetch((const char *)(x + min_size(p + AHEAD + 1, k - 1) * ld), _MM_HINT_T0);
}

/* A panel of B. Stored (k, n), row by row; stored (n, k), in squares of 16 columns by 32 of k. */
TARGET_AVX512_BF16 static void pack_b(float *dst, size_t k, size_t n, const float *b, size_t row,
                                      size_t step) {
  for (size_t p = 0; p < k && step == 1; p += 2)
    for (size_t j = 0; j < NR; j += LANES)
      _mm512_store_si512(dst + p / 2 * NR + j,
                         j < n ? round_two_rows(b + p * row + j, row, min_size(2, k - p), n - j)
                               : _mm512_setzero_si512());
  for (size_t j = 0; j < NR && step != 1; j += LANES)
    for (size_t p = 0; p < k; p += 2 * LANES) {
      __m512i r[16];
#pragma GCC unroll 16
      for (size_t i = 0; i < LANES; i++)
        r[i] = j + i < n ? round_row(b + (j + i) * step + p, k - p) : _mm512_setzero_si512();
      transpose16(r);
      for (size_t i = 0; i < LANES && p + 2 * i < k; i++)
        _mm512_store_si512(dst + (p / 2 + i) * NR + j, r[i]);
    }
}

/* Rows of A. Stored (m, k) they stay rows; stored (k, m) they go to panels of MR, two at a time. */
TARGET_AVX512_BF16 static void pack_a(float *dst, size_t k, size_t m, const float *a, size_t row,
                                      size_t step) {
  const size_t n_pairs = (k + 1) / 2, whole = k / (2 * LANES) * 2 * LANES;
  for (size_t i = 0; i < m && row == 1; i++) {
    float *d = dst + i * n_pairs;
    for (size_t p = 0; p < whole; p += 2 * LANES)
      _mm512_storeu_si512(d + p / 2, round_row(a + i * step + p, 2 * LANES));
    if (whole < k)
      _mm512_mask_storeu_epi32(d + whole / 2, (__mmask16)((1u << (n_pairs - whole / 2)) - 1),
                               round_row(a + i * step + whole, k - whole));
  }
  for (size_t i = 0; i < m && row != 1; i += LANES)
    for (size_t p = 0; p < k; p += 2) {
      fetch_two_rows(a + i, row, p, k);
      const __m512i pairs = round_two_rows(a + p * row + i, row, min_size(2, k - p), m - i);
      float *panel = dst + i * n_pairs + p / 2 * MR;
      _mm256_store_si256((__m256i *)panel, _mm512_castsi512_si256(pairs));
      if (i + MR < m)
        _mm256_store_si256((__m256i *)(panel + MR * n_pairs), _mm512_extracti64x4_epi64(pairs, 1));
    }
}

/* ---- the tile: 24 accumulators, named so that both compilers keep them in registers; narrow ones
 * take the first or the first two registers of each row ---- */

#define ZERO(i)                                                                                    \
  __m512 x##i = _mm512_setzero_ps(), y##i = x##i, z##i = x##i;                                     \
  _mm_prefetch((const char *)(c + (i)*ldc), _MM_HINT_T0);                                          \
  if (width > 1) _mm_prefetch((const char *)(c + (i)*ldc + LANES), _MM_HINT_T0);                   \
  _mm_prefetch((const char *)(c + (i)*ldc + width * LANES - 1), _MM_HINT_T0);
#define DOT(i)                                                                                     \
  {                                                                                                \
    const __m512bh ai = (__m512bh)_mm512_set1_ps(a[(i)*row]);                                      \
    x##i = _mm512_dpbf16_ps(x##i, ai, b0);                                                         \
    if (width > 1) y##i = _mm512_dpbf16_ps(y##i, ai, b1);                                          \
    if (width > 2) z##i = _mm512_dpbf16_ps(z##i, ai, b2);                                          \
  }
#define SCALE(i)                                                                                   \
  x##i = _mm512_mul_ps(x##i, factor);                                                              \
  if (width > 1) y##i = _mm512_mul_ps(y##i, factor);                                               \
  if (width > 2) z##i = _mm512_mul_ps(z##i, factor);
#define ADD(i)                                                                                     \
  {                                                                                                \
    const float *d = add + (i)*ld_add;                                                             \
    x##i = _mm512_fmadd_ps(_mm512_loadu_ps(d), factor, x##i);                                      \
    if (width > 1) y##i = _mm512_fmadd_ps(_mm512_loadu_ps(d + LANES), factor, y##i);               \
    if (width > 2) z##i = _mm512_fmadd_ps(_mm512_loadu_ps(d + 2 * LANES), factor, z##i);           \
  }
#define STORE(i)                                                                                   \
  _mm512_storeu_ps(c + (i)*ldc, x##i);                                                             \
  if (width > 1) _mm512_storeu_ps(c + (i)*ldc + LANES, y##i);                                      \
  if (width > 2) _mm512_storeu_ps(c + (i)*ldc + 2 * LANES, z##i);
#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)

#define TILE(name, registers)                                                                      \
  TARGET_AVX512_BF16 static void name(                                                             \
      size_t k, const float *a, size_t row, size_t step, const float *b, float *c, size_t ldc,     \
      const float *add, size_t ld_add, const float *scale, const char *next, size_t advance) {     \
    enum { width = registers };                                                                    \
    ROWS(ZERO)                                                                                     \
    for (; k; k--) {                                                                               \
      if (k % FETCH_STEPS == 0) {                                                                  \
        _mm_prefetch(next, _MM_HINT_T1);                                                           \
        next += advance;                                                                           \
      }                                                                                            \
      const __m512bh b0 = (__m512bh)_mm512_load_ps(b), b1 = (__m512bh)_mm512_load_ps(b + LANES),   \
                     b2 = (__m512bh)_mm512_load_ps(b + 2 * LANES);                                 \
      ROWS(DOT)                                                                                    \
      a += step;                                                                                   \
      b += NR;                                                                                     \
    }                                                                                              \
    if (scale) {                                                                                   \
      const __m512 factor = _mm512_set1_ps(scale[0]);                                              \
      ROWS(SCALE)                                                                                  \
    }                                                                                              \
    if (add) {                                                                                     \
      const __m512 factor = _mm512_set1_ps(scale ? scale[1] : 1.0f);                               \
      ROWS(ADD)                                                                                    \
    }                                                                                              \
    ROWS(STORE)                                                                                    \
  }

TILE(tile_16, 1)
TILE(tile_32, 2)
TILE(tile_48, 3)

/* Sizes tuned on Zen 5. */
const gemm_kernel gemm_bf16 = {MR, NR, 2, 1024, 144, tile_48, pack_a, pack_b, {tile_16, tile_32}};

#endif
