/* train_gemm_amx.c: the tile and the packing of a product that rounds its operands to bfloat16
 * (nearest even) and sums in float32, for processors with AMX. Layer T. The rest of the product is
 * train_gemm.c; csrc/cpu.c asked the system for the registers.
 *
 * Packed rows of A and packed panels of B are what the registers hold as they lie: 16 rows of 16
 * dwords, two neighbours in k each. TDPBF16PS (Intel SDM volume 2) sums the even and the odd
 * elements of 32 in k by themselves, then both, then adds them to what is there; subnormals are
 * zero. Sums of a k that is no multiple of 32 end with zeros, which change nothing. */
#include "train_bf16.h"

#if defined(__x86_64__)

enum { MR = 32, NR = 32, UNIT = 32, STEPS = UNIT / 2 };

/* ---- packing ---- */

TARGET_AVX512_BF16 static void pack_b(float *dst, size_t k, size_t n, const float *b, size_t row,
                                      size_t step) {
  pack_panel_bf16(NR, UNIT, dst, k, n, b, row, step);
}

/* Rows of A. Stored (k, m) they are turned in squares of 16 rows by 32 of k, along the memory. */
TARGET_AVX512_BF16 static void pack_a(float *dst, size_t k, size_t m, const float *a, size_t row,
                                      size_t step) {
  const size_t n_steps = round_up(k, UNIT) / 2;
  if (row == 1) {
    pack_rows_bf16(UNIT, dst, k, m, a, step);
    return;
  }
  for (size_t p = 0; p < k; p += UNIT)
    for (size_t i = 0; i < m; i += LANES) {
      __m512i r[16];
#pragma GCC unroll 16
      for (size_t q = 0; q < LANES; q++) {
        const size_t at = p + 2 * q;
        if (at < k) fetch_two_rows(a + i, row, at, k);
        r[q] = at < k ? round_two_rows(a + at * row + i, row, min_size(2, k - at), m - i)
                      : _mm512_setzero_si512();
      }
      transpose16(r);
      for (size_t q = 0; q < LANES; q++) _mm512_store_si512(dst + (i + q) * n_steps + p / 2, r[q]);
    }
}

/* ---- the tile: registers 0 to 3 sum, 4 and 5 are of A, 6 and 7 of B ---- */

typedef struct tile_config { /* of LDTILECFG */
  uint8_t palette, start_row, zeros[14];
  uint16_t row_bytes[16];
  uint8_t n_rows[16];
} tile_config;
_Static_assert(sizeof(tile_config) == 64, "what the instruction reads");

static const tile_config CONFIG = {.palette = 1,
                                   .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                   .n_rows = {16, 16, 16, 16, 16, 16, 16, 16}};

TARGET_AMX static void begin(void) { _tile_loadconfig(&CONFIG); }
TARGET_AMX static void end(void) { _tile_release(); }

/* What becomes of a sum: scale and add, as the other tiles do. */
TARGET_AMX PORT_INLINE void finish_rows(const size_t width, const float *sums, float *c, size_t ldc,
                                        const float *add, size_t ld_add, const float *scale) {
  const __m512 factor = _mm512_set1_ps(scale ? scale[0] : 1.0f);
  const __m512 add_factor = _mm512_set1_ps(scale ? scale[1] : 1.0f);
  for (size_t i = 0; i < MR; i++)
    for (size_t j = 0; j < width; j += LANES) {
      __m512 x = _mm512_load_ps(sums + i * NR + j);
      if (scale) x = _mm512_mul_ps(x, factor);
      if (add) x = _mm512_fmadd_ps(_mm512_loadu_ps(add + i * ld_add + j), add_factor, x);
      _mm512_storeu_ps(c + i * ldc + j, x);
    }
}

#define TILE(name, width)                                                                          \
  TARGET_AMX static void name(size_t k, const float *a, size_t row, size_t step, const float *b,   \
                              float *c, size_t ldc, const float *add, size_t ld_add,               \
                              const float *scale, const char *next, size_t advance) {              \
    (void)step, (void)next, (void)advance;                                                         \
    _Alignas(64) float sums[MR * NR];                                                              \
    const int aside = add || scale;                                                                \
    float *to = aside ? sums : c;                                                                  \
    const size_t a_bytes = row * sizeof(float), b_bytes = NR * sizeof(float),                      \
                 to_bytes = (aside ? NR : ldc) * sizeof(float);                                    \
    for (size_t i = 0; i < MR; i++) _mm_prefetch((const char *)(c + i * ldc), _MM_HINT_T0);        \
    for (size_t i = 0; i < MR; i++)                                                                \
      _mm_prefetch((const char *)(c + i * ldc + (width)-1), _MM_HINT_T0);                          \
    _tile_zero(0);                                                                                 \
    _tile_zero(1);                                                                                 \
    _tile_zero(2);                                                                                 \
    _tile_zero(3);                                                                                 \
    for (; k; k -= STEPS) {                                                                        \
      _tile_loadd(4, a, a_bytes);                                                                  \
      _tile_loadd(6, b, b_bytes);                                                                  \
      _tile_dpbf16ps(0, 4, 6);                                                                     \
      _tile_loadd(5, a + 16 * row, a_bytes);                                                       \
      _tile_dpbf16ps(2, 5, 6);                                                                     \
      if ((width) > LANES) {                                                                       \
        _tile_loadd(7, b + LANES, b_bytes);                                                        \
        _tile_dpbf16ps(1, 4, 7);                                                                   \
        _tile_dpbf16ps(3, 5, 7);                                                                   \
      }                                                                                            \
      a += STEPS;                                                                                  \
      b += STEPS * NR;                                                                             \
    }                                                                                              \
    _tile_stored(0, to, to_bytes);                                                                 \
    _tile_stored(2, to + 16 * (to_bytes / sizeof(float)), to_bytes);                               \
    if ((width) > LANES) {                                                                         \
      _tile_stored(1, to + LANES, to_bytes);                                                       \
      _tile_stored(3, to + 16 * (to_bytes / sizeof(float)) + LANES, to_bytes);                     \
    }                                                                                              \
    if (aside) finish_rows(width, sums, c, ldc, add, ld_add, scale);                               \
  }

TILE(tile_16, 16)
TILE(tile_32, 32)

/* Measured on Emerald Rapids, where C's way to memory is the limit: bench/README.md. A block of k
 * from the second-level cache is no slower than one from the first, and long blocks of k and rows
 * of C go to memory less often; 1,024 columns of B are all that leaves room beside them. */
const gemm_kernel gemm_amx = {.mr = MR,
                              .nr = NR,
                              .columns = 1024,
                              .pair = 2,
                              .k_unit = UNIT,
                              .max_kc = 768,
                              .max_rows = 256,
                              .tile = tile_32,
                              .pack_a = pack_a,
                              .pack_b = pack_b,
                              .narrow = {tile_16},
                              .padded = 1,
                              .begin = begin,
                              .end = end};

#endif
