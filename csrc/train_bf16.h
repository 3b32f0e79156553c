/* train_bf16.h: float32 rounded to bfloat16 (nearest even) while it is packed: what the products of
 * train_gemm_bf16.c and train_gemm_amx.c share. Layer T.
 *
 * A packed element is a dword, two neighbours in k; past the end of k are zeros, up to a multiple
 * of `unit` elements. */
#ifndef LLM_TRAIN_BF16_H
#define LLM_TRAIN_BF16_H

#include "train_ops.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { LANES = 16, AHEAD = 48 };

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

/* A panel of B, `width` columns of which there are n. Stored (k, n), row by row; stored (n, k), in
 * squares of 16 columns by 32 of k. */
BF16 void pack_panel_bf16(const size_t width, const size_t unit, float *dst, size_t k, size_t n,
                          const float *b, size_t row, size_t step) {
  const size_t padded = round_up(k, unit);
  for (size_t p = 0; p < padded && step == 1; p += 2)
    for (size_t j = 0; j < width; j += LANES)
      _mm512_store_si512(dst + p / 2 * width + j,
                         j < n && p < k
                             ? round_two_rows(b + p * row + j, row, min_size(2, k - p), n - j)
                             : _mm512_setzero_si512());
  for (size_t j = 0; j < width && step != 1; j += LANES)
    for (size_t p = 0; p < padded; p += 2 * LANES) {
      __m512i r[16];
#pragma GCC unroll 16
      for (size_t i = 0; i < LANES; i++)
        r[i] = j + i < n ? round_row(b + (j + i) * step + p, k - p) : _mm512_setzero_si512();
      transpose16(r);
      for (size_t i = 0; i < LANES && p + 2 * i < padded; i++)
        _mm512_store_si512(dst + (p / 2 + i) * width + j, r[i]);
    }
}

/* Rows of A, stored (m, k), stay rows. */
BF16 void pack_rows_bf16(const size_t unit, float *dst, size_t k, size_t m, const float *a,
                         size_t step) {
  const size_t n_pairs = round_up(k, unit) / 2, whole = k / (2 * LANES) * 2 * LANES;
  for (size_t i = 0; i < m; i++) {
    float *d = dst + i * n_pairs;
    for (size_t p = 0; p < whole; p += 2 * LANES)
      _mm512_storeu_si512(d + p / 2, round_row(a + i * step + p, 2 * LANES));
    if (whole < k)
      _mm512_mask_storeu_epi32(d + whole / 2, (__mmask16)((1u << (n_pairs - whole / 2)) - 1),
                               round_row(a + i * step + whole, k - whole));
  }
}

#endif
#endif
