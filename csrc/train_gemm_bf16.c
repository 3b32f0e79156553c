/* train_gemm_bf16.c: the tile and the packing of a product that rounds its operands to bfloat16
 * (nearest even) and sums in float32, for processors with vdpbf16ps. Layer T. The rest of the
 * product is train_gemm.c, and train_gemm_amx.c the same where there are tiles.
 *
 * Matrices stay float32 in memory: they are rounded while they are packed, so nothing else knows of
 * bfloat16. A packed element is a dword, two neighbours in k; an odd k ends with a zero. */
#include "train_bf16.h"

#if defined(__x86_64__)

enum { MR = 8, NR = 48, UNIT = 2 };

/* ---- packing ---- */

TARGET_AVX512_BF16 static void pack_b(float *dst, size_t k, size_t n, const float *b, size_t row,
                                      size_t step) {
  pack_panel_bf16(NR, UNIT, dst, k, n, b, row, step);
}

/* Rows of A. Stored (m, k) they stay rows; stored (k, m) they go to panels of MR, two at a time. */
TARGET_AVX512_BF16 static void pack_a(float *dst, size_t k, size_t m, const float *a, size_t row,
                                      size_t step) {
  const size_t n_pairs = (k + 1) / 2;
  if (row == 1) {
    pack_rows_bf16(UNIT, dst, k, m, a, step);
    return;
  }
  for (size_t i = 0; i < m; i += LANES)
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
const gemm_kernel gemm_bf16 = {.mr = MR,
                               .nr = NR,
                               .columns = NR,
                               .pair = 2,
                               .k_unit = UNIT,
                               .max_kc = 1024,
                               .max_rows = 144,
                               .tile = tile_48,
                               .pack_a = pack_a,
                               .pack_b = pack_b,
                               .narrow = {tile_16, tile_32}};

#endif
