/* kernels_avx512.c: matrix products with AVX-512 F, BW, DQ, VL and VNNI; everything else is AVX2's.
 * Layer 2.
 *
 * Float weights: one register of 16 lanes an output. Quantized weights, one token: 4 rows x 4
 * blocks, 128-bit lane = block, so that a short tree of adds leaves element = row and the blocks
 * follow one another in four 128-bit FMAs. Many tokens: panels of 16 rows. Weights become unsigned
 * bytes, as VNNI wants them; what that adds to a dot product, a multiple of the sum of the
 * activations, is the accumulator's starting value. */
#include "kernels.h"

#if defined(__x86_64__)
#ifdef LLM_EMULATE_AVX512
#include "emulate_avx512.h" /* tests on machines without it */
#else
#include <immintrin.h>
#define AVX512                                                                                     \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#endif

#include "kernels_avx2.h"

#define AVX512_INLINE static inline __attribute__((always_inline)) AVX512

static kernels below; /* the set that this one started from: takes odd widths and few rows */

/* ---- float weights ---- */

AVX512_INLINE __m512 load_lanes(const llm_type type, const void *src, size_t k) {
  if (type == LLM_TYPE_F32) return _mm512_loadu_ps((const float *)src + k);
  __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)src + k));
  if (type == LLM_TYPE_F16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

enum { MAX_TILE = 24 };

/* Rows r, r + apart, ... times tokens t, t + 1, ... */
AVX512_INLINE void float_tile(const llm_type type, const int n_row, const int n_tok,
                              const matmul_args *m, size_t r, size_t apart, size_t t) {
  const size_t n_in = m->act->n_in, row_bytes = n_in * (type == LLM_TYPE_F32 ? 4 : 2);
  const char *w = (const char *)m->w + r * row_bytes;
  const float *x = m->act->x + t * n_in;
  __m512 sum[MAX_TILE];
  UNROLL
  for (int i = 0; i < n_row * n_tok; i++) sum[i] = _mm512_setzero_ps();
  for (size_t k = 0; k < n_in; k += LANES) {
    __m512 wk[8];
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
  float *y = m->y + t * m->ldy + r;
  UNROLL
  for (int i = 0; i < n_row; i++) {
    UNROLL
    for (int j = 0; j < n_tok; j++) {
      __m512d v = _mm512_castps_pd(sum[i * n_tok + j]);
      y[(size_t)j * m->ldy + (size_t)i * apart] =
          sum_lanes(_mm256_castpd_ps(_mm512_castpd512_pd256(v)),
                    _mm256_castpd_ps(_mm512_extractf64x4_pd(v, 1)));
    }
  }
}

AVX512_INLINE void float_rows(const llm_type type, const int n_tok, const matmul_args *m, size_t t,
                              size_t r0, size_t r1) {
  size_t r = r0;
  for (; r + 4 <= r1; r += 4) float_tile(type, 4, n_tok, m, r, 1, t);
  for (; r < r1; r++) float_tile(type, 1, n_tok, m, r, 1, t);
}

enum { FLOAT_BLOCK_BYTES = 256 << 10 }; /* of weights that stay in L2 while all tokens pass */

AVX512_INLINE void float_matmul(const llm_type type, const matmul_args *m, size_t r0, size_t r1) {
  const size_t n_tok = m->act->n_tok, row_bytes = m->act->n_in * (type == LLM_TYPE_F32 ? 4 : 2);
  if (n_tok == 1) {
    const size_t apart = (r1 - r0) / 8;
    for (size_t r = r0; r < r0 + apart; r++) float_tile(type, 8, 1, m, r, apart, 0);
    for (size_t r = r0 + 8 * apart; r < r1; r++) float_tile(type, 1, 1, m, r, 1, 0);
    return;
  }
  const size_t step = FLOAT_BLOCK_BYTES / row_bytes / 4 * 4 + 4;
  for (size_t b0 = r0; b0 < r1; b0 += step) {
    size_t b1 = min_size(b0 + step, r1), t = 0;
    for (; t + 6 <= n_tok; t += 6) float_rows(type, 6, m, t, b0, b1);
    for (; t + 2 <= n_tok; t += 2) float_rows(type, 2, m, t, b0, b1);
    if (t < n_tok) float_rows(type, 1, m, t, b0, b1);
  }
}

#define DEFINE_FLOAT_MATMUL(name, type)                                                            \
  AVX512 static void float_matmul_##name(const matmul_args *m, size_t r0, size_t r1) {             \
    float_matmul(type, m, r0, r1);                                                                 \
  }                                                                                                \
  static void matmul_##name##_avx512(const matmul_args *m, size_t r0, size_t r1, void *scratch) {  \
    if (m->act->n_in % LANES)                                                                      \
      below.matmul[type](m, r0, r1, scratch);                                                      \
    else                                                                                           \
      float_matmul_##name(m, r0, r1);                                                              \
  }

DEFINE_FLOAT_MATMUL(f32, LLM_TYPE_F32)
DEFINE_FLOAT_MATMUL(f16, LLM_TYPE_F16)
DEFINE_FLOAT_MATMUL(bf16, LLM_TYPE_BF16)

/* ---- what both quantized shapes need ---- */

/* Weight bytes as stored here are the weights plus this. */
ALWAYS_INLINE int zero_point(const llm_type type) {
  return type == LLM_TYPE_Q8_0 ? 128 : type == LLM_TYPE_Q4_0 ? 8 : 0;
}

/* 16 bytes from each of four places, one a 128-bit lane. */
AVX512_INLINE __m512i load_four(const uint8_t *p, size_t o1, size_t o2, size_t o3) {
  __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + o1), 1);
  __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p + o2)), load16(p + o3), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Quants at q and at q + o1, o2, o3 as unsigned bytes: elements 0 to 15 of each block, 16 to 31. */
AVX512_INLINE void load_quants(const llm_type type, const uint8_t *q, size_t o1, size_t o2,
                               size_t o3, __m512i *low, __m512i *high) {
  __m512i w = load_four(q, o1, o2, o3);
  if (type == LLM_TYPE_Q8_0) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    *low = _mm512_xor_si512(w, sign);
    *high = _mm512_xor_si512(load_four(q + 16, o1, o2, o3), sign);
  } else {
    const __m512i nibble = _mm512_set1_epi8(15);
    *low = _mm512_and_si512(w, nibble);
    *high = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
  }
}

/* ---- one token: 4 rows x 4 blocks ---- */

enum { ROWS = 4 };

/* Activations of four blocks as the weights meet them; what is one a block stands four times. */
typedef struct quad {
  int8_t low[64], high[64];
  float scale[16], scaled_sum[16];
  int32_t start[16]; /* -zero_point * sum */
} quad;

static size_t quads_for(size_t n_in) { return (n_in / QK + 3) / 4; }

static void fill_quads(const act_rows *act, int zero, quad *quads) {
  memset(quads, 0, quads_for(act->n_in) * sizeof *quads);
  for (size_t b = 0; b < act->n_in / QK; b++) {
    quad *a = &quads[b / 4];
    size_t lane = b % 4;
    memcpy(a->low + 16 * lane, act->q + b * QK, 16);
    memcpy(a->high + 16 * lane, act->q + b * QK + 16, 16);
    for (size_t i = 4 * lane; i < 4 * lane + 4; i++) {
      a->scale[i] = act->scale[b];
      a->scaled_sum[i] = act->scaled_sum[b];
      a->start[i] = -zero * act->sum[b];
    }
  }
}

/* The headers of up to four blocks of row i go to element i of each lane of h: 16-bit scales, or
 * dwords of scale and minimum. `bytes` may be read. */
AVX512_INLINE __m512i gather_headers(const llm_type type, const uint8_t *row, const int i,
                                     const size_t bytes, const int all, __m512i h) {
  const __mmask64 mask = bytes >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << bytes) - 1;
  __m512i first = all ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi8(mask, row);
  if (type == LLM_TYPE_Q4_1) {
    const __m512i at = _mm512_setr_epi32(0, 0, 0, 0, 5, 5, 5, 5, 10, 10, 10, 10, 15, 15, 15, 15);
    return _mm512_mask_permutexvar_epi32(h, (__mmask16)(0x1111 << i), at, first);
  }
  if (type == LLM_TYPE_Q4_0) {
    const __m512i at = _mm512_broadcast_i64x4(
        _mm256_setr_epi16(0, 0, 0, 0, 9, 9, 9, 9, 18, 18, 18, 18, 27, 27, 27, 27));
    return _mm512_mask_permutexvar_epi16(h, (__mmask32)(0x1111 << i), at, first);
  }
  const __m512i at = _mm512_broadcast_i64x4(
      _mm256_setr_epi16(0, 0, 0, 0, 17, 17, 17, 17, 2, 2, 2, 2, 19, 19, 19, 19));
  h = _mm512_mask_permutexvar_epi16(h, (__mmask32)(0x0011 << i), at, first);
  if (bytes <= 64) return h;
  const __mmask64 rest = bytes >= 128 ? ~(__mmask64)0 : ((__mmask64)1 << (bytes - 64)) - 1;
  __m512i second = all ? _mm512_loadu_si512(row + 64) : _mm512_maskz_loadu_epi8(rest, row + 64);
  return _mm512_mask_permutexvar_epi16(h, (__mmask32)(0x1100 << i), at, second);
}

/* Four registers of four dwords a lane to one: element i of each lane is the sum of register i's.
 */
AVX512_INLINE __m512i sum_dwords(const __m512i d[4]) {
  __m512i a =
      _mm512_add_epi32(_mm512_unpacklo_epi32(d[0], d[1]), _mm512_unpackhi_epi32(d[0], d[1]));
  __m512i b =
      _mm512_add_epi32(_mm512_unpacklo_epi32(d[2], d[3]), _mm512_unpackhi_epi32(d[2], d[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Each line is asked for three times: a single request is lost when the miss buffers are full. */
AVX512_INLINE void prefetch(const uint8_t *p) {
  _mm_prefetch((const char *)p + (16 << 10), _MM_HINT_T0);
  _mm_prefetch((const char *)p + (20 << 10), _MM_HINT_T0);
  _mm_prefetch((const char *)p + (24 << 10), _MM_HINT_T0);
}

#define ADD_BLOCK(lane)                                                                            \
  y = _mm_fmadd_ps(_mm512_extractf32x4_ps(value, lane), _mm512_extractf32x4_ps(scale, lane), y);   \
  if (type == LLM_TYPE_Q4_1)                                                                       \
    y = _mm_fmadd_ps(_mm512_extractf32x4_ps(minimum, lane), _mm512_extractf32x4_ps(sum, lane), y);

/* n blocks (1 to 4) of 4 rows added to y; ahead: where to prefetch from, in file order. */
AVX512_INLINE __m128 decode_quad(const llm_type type, const uint8_t *w, size_t row_bytes,
                                 const quad *a, const size_t n, const uint8_t *ahead, __m128 y) {
  const size_t size = block_bytes(type);
  const size_t o1 = min_size(1, n - 1) * size, o2 = min_size(2, n - 1) * size, o3 = (n - 1) * size;
  const __m512i a_low = _mm512_load_si512(a->low), a_high = _mm512_load_si512(a->high);
  __m512i dot[ROWS], headers = _mm512_setzero_si512();
  UNROLL
  for (int i = 0; i < ROWS; i++) {
    const uint8_t *row = w + (size_t)i * row_bytes;
    for (size_t k = 64 * (size_t)i; k < 16 * size; k += 256) prefetch(ahead + k);
    __m512i low, high;
    load_quants(type, row + header_bytes(type), o1, o2, o3, &low, &high);
    dot[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, a_low);
    dot[i] = _mm512_dpbusd_epi32(dot[i], high, a_high);
    headers = gather_headers(type, row, i, n * size, n == 4, headers);
  }
  __m512i total = _mm512_add_epi32(sum_dwords(dot), _mm512_load_si512(a->start));
  __m512 value = _mm512_cvtepi32_ps(total), sum = _mm512_load_ps(a->scaled_sum), scale, minimum;
  if (type == LLM_TYPE_Q4_1) {
    scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(headers));
    minimum = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(headers, 16)));
  } else {
    scale = minimum = _mm512_cvtph_ps(_mm512_castsi512_si256(headers));
  }
  scale = _mm512_mul_ps(scale, _mm512_load_ps(a->scale));
  ADD_BLOCK(0)
  if (n > 1) {
    ADD_BLOCK(1)
  }
  if (n > 2) {
    ADD_BLOCK(2)
  }
  if (n > 3) {
    ADD_BLOCK(3)
  }
  return y;
}

AVX512_INLINE void decode(const llm_type type, const matmul_args *m, size_t r0, size_t r1,
                          quad *quads) {
  const size_t size = block_bytes(type), n_blocks = m->act->n_in / QK;
  const size_t row_bytes = n_blocks * size;
  fill_quads(m->act, zero_point(type), quads);
  for (size_t r = r0; r < r1; r += ROWS) {
    row_group g = group_at(r, r1, m->n_out, ROWS);
    const uint8_t *w = (const uint8_t *)m->w + g.first * row_bytes, *ahead = w;
    __m128 sum = _mm_setzero_ps();
    size_t b = 0;
    for (; b + 4 <= n_blocks; b += 4, ahead += 16 * size)
      sum = decode_quad(type, w + b * size, row_bytes, quads + b / 4, 4, ahead, sum);
    if (b < n_blocks)
      sum = decode_quad(type, w + b * size, row_bytes, quads + b / 4, n_blocks - b, ahead, sum);
    float y[ROWS];
    _mm_storeu_ps(y, sum);
    memcpy(m->y + g.from, y + (g.from - g.first), (g.to - g.from) * sizeof *y);
  }
}

/* ---- many tokens: panels of 16 rows ---- */

/* Per block 8 registers of 16 lanes (one a row) with four bytes each, then the scales and minima,
 * 16 floats a block. */
enum { PANEL_ROWS = 16, STEPS = 8, MAX_PANELS = 8, PANELS_BYTES = 512 << 10, TILE_TOK = 6 };

typedef struct panels {
  size_t n, n_blocks;
  row_group rows[MAX_PANELS];
  uint8_t *quants[MAX_PANELS];
  float *scales[MAX_PANELS], *minima[MAX_PANELS];
} panels;

static size_t panel_bytes(size_t n_in) { return n_in / QK * (STEPS * 64 + 2 * 64); }

static size_t panels_for(size_t n_in) {
  size_t n = PANELS_BYTES / (panel_bytes(n_in) + 1);
  return n < 2 ? 2 : min_size(n, MAX_PANELS);
}

static size_t scratch_bytes_avx512(size_t n_in) {
  if (n_in % QK) return below.scratch_bytes(n_in);
  size_t n = panels_for(n_in) * panel_bytes(n_in), quads = quads_for(n_in) * sizeof(quad);
  if (n < quads) n = quads;
  return n < below.scratch_bytes(n_in) ? below.scratch_bytes(n_in) : n;
}

/* In: lane l of d[i] is 16 bytes of row 4l + i. Out: d[j] is dword j of rows 0 to 15. */
AVX512_INLINE void transpose(__m512i d[4]) {
  __m512i a = _mm512_unpacklo_epi32(d[0], d[1]), b = _mm512_unpackhi_epi32(d[0], d[1]);
  __m512i c = _mm512_unpacklo_epi32(d[2], d[3]), e = _mm512_unpackhi_epi32(d[2], d[3]);
  d[0] = _mm512_unpacklo_epi64(a, c);
  d[1] = _mm512_unpackhi_epi64(a, c);
  d[2] = _mm512_unpacklo_epi64(b, e);
  d[3] = _mm512_unpackhi_epi64(b, e);
}

AVX512_INLINE void fill_panel(const llm_type type, const uint8_t *w, panels *p, size_t panel) {
  const size_t size = block_bytes(type), row_bytes = p->n_blocks * size, four = 4 * row_bytes;
  uint8_t *out = p->quants[panel];
  float *scales = p->scales[panel], *minima = p->minima[panel];
  for (size_t b = 0; b < p->n_blocks; b++, w += size, out += STEPS * 64) {
    __m512i low[4], high[4];
    UNROLL
    for (size_t i = 0; i < 4; i++)
      load_quants(type, w + header_bytes(type) + i * row_bytes, four, 2 * four, 3 * four, &low[i],
                  &high[i]);
    transpose(low);
    transpose(high);
    UNROLL
    for (size_t i = 0; i < 4; i++) {
      _mm512_store_si512(out + i * 64, low[i]);
      _mm512_store_si512(out + (4 + i) * 64, high[i]);
    }
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      __m256 scale, minimum;
      load_scales(type, w + 8 * half * row_bytes, row_bytes, &scale, &minimum);
      _mm256_storeu_ps(scales + b * PANEL_ROWS + 8 * half, scale);
      if (type == LLM_TYPE_Q4_1) _mm256_storeu_ps(minima + b * PANEL_ROWS + 8 * half, minimum);
    }
  }
}

AVX512_INLINE void store_panel(float *y, const row_group *g, __m512 sums) {
  if (g->to - g->from == PANEL_ROWS) {
    _mm512_storeu_ps(y + g->first, sums);
    return;
  }
  float all[PANEL_ROWS];
  _mm512_storeu_ps(all, sums);
  memcpy(y + g->from, all + (g->from - g->first), (g->to - g->from) * sizeof *y);
}

/* n_panel panels from `panel` on times n_tok tokens from t on. */
AVX512_INLINE void panel_tile(const llm_type type, const int n_panel, const int n_tok,
                              const panels *p, size_t panel, const matmul_args *m, size_t t) {
  const act_rows *act = m->act;
  const size_t n_blocks = p->n_blocks;
  const int8_t *a = act->q + t * act->n_in;
  __m512 y[2 * TILE_TOK];
  UNROLL
  for (int i = 0; i < n_panel * n_tok; i++) y[i] = _mm512_setzero_ps();
  for (size_t b = 0; b < n_blocks; b++) {
    __m512i dot[2 * TILE_TOK];
    UNROLL
    for (int j = 0; j < n_tok; j++) {
      __m512i start = _mm512_setzero_si512();
      if (zero_point(type)) {
        __m512i sum = _mm512_set1_epi32(act->sum[(t + (size_t)j) * n_blocks + b]);
        start = _mm512_sub_epi32(start, _mm512_slli_epi32(sum, type == LLM_TYPE_Q8_0 ? 7 : 3));
      }
      UNROLL
      for (int i = 0; i < n_panel; i++) dot[i * n_tok + j] = start;
    }
    UNROLL
    for (size_t s = 0; s < STEPS; s++) {
      __m512i w[2];
      UNROLL
      for (int i = 0; i < n_panel; i++)
        w[i] = _mm512_load_si512(p->quants[panel + (size_t)i] + (b * STEPS + s) * 64);
      UNROLL
      for (int j = 0; j < n_tok; j++) {
        __m512i x = _mm512_set1_epi32(load_i32(a + (size_t)j * act->n_in + b * QK + s * 4));
        UNROLL
        for (int i = 0; i < n_panel; i++)
          dot[i * n_tok + j] = _mm512_dpbusd_epi32(dot[i * n_tok + j], w[i], x);
      }
    }
    UNROLL
    for (int i = 0; i < n_panel; i++) {
      __m512 scale = _mm512_load_ps(p->scales[panel + (size_t)i] + b * PANEL_ROWS), minimum = scale;
      if (type == LLM_TYPE_Q4_1)
        minimum = _mm512_load_ps(p->minima[panel + (size_t)i] + b * PANEL_ROWS);
      UNROLL
      for (int j = 0; j < n_tok; j++) {
        size_t at = (t + (size_t)j) * n_blocks + b;
        __m512 *sum = &y[i * n_tok + j];
        __m512 product = _mm512_mul_ps(scale, _mm512_set1_ps(act->scale[at]));
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i * n_tok + j]), product, *sum);
        if (type == LLM_TYPE_Q4_1)
          *sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(act->scaled_sum[at]), *sum);
      }
    }
  }
  UNROLL
  for (int i = 0; i < n_panel; i++) {
    UNROLL
    for (int j = 0; j < n_tok; j++)
      store_panel(m->y + (t + (size_t)j) * m->ldy, &p->rows[panel + (size_t)i], y[i * n_tok + j]);
  }
}

AVX512_INLINE void panels_times_tokens(const llm_type type, const int n_tok, const panels *p,
                                       const matmul_args *m, size_t t) {
  size_t i = 0;
  for (; i + 2 <= p->n; i += 2) panel_tile(type, 2, n_tok, p, i, m, t);
  if (i < p->n) panel_tile(type, 1, n_tok, p, i, m, t);
}

AVX512_INLINE void prefill(const llm_type type, const matmul_args *m, size_t r0, size_t r1,
                           char *scratch) {
  const size_t n_in = m->act->n_in, n_blocks = n_in / QK, n_tok = m->act->n_tok;
  const size_t n_panels = panels_for(n_in), row_bytes = n_blocks * block_bytes(type);
  for (size_t r = r0; r < r1; r += n_panels * PANEL_ROWS) {
    panels p = {.n_blocks = n_blocks};
    for (; p.n < n_panels && r + p.n * PANEL_ROWS < r1; p.n++) {
      char *memory = scratch + p.n * panel_bytes(n_in);
      p.rows[p.n] = group_at(r + p.n * PANEL_ROWS, r1, m->n_out, PANEL_ROWS);
      p.quants[p.n] = (uint8_t *)memory;
      p.scales[p.n] = (float *)(memory + n_blocks * STEPS * 64);
      p.minima[p.n] = p.scales[p.n] + n_blocks * PANEL_ROWS;
      fill_panel(type, (const uint8_t *)m->w + p.rows[p.n].first * row_bytes, &p, p.n);
    }
    size_t t = 0;
    for (; t + 6 <= n_tok; t += 6) panels_times_tokens(type, 6, &p, m, t);
    for (; t + 2 <= n_tok; t += 2) panels_times_tokens(type, 2, &p, m, t);
    if (t < n_tok) panels_times_tokens(type, 1, &p, m, t);
  }
}

#define DEFINE_QUANTIZED_MATMUL(name, type)                                                        \
  AVX512 static void decode_##name(const matmul_args *m, size_t r0, size_t r1, quad *quads) {      \
    decode(type, m, r0, r1, quads);                                                                \
  }                                                                                                \
  AVX512 static void prefill_##name(const matmul_args *m, size_t r0, size_t r1, char *scratch) {   \
    prefill(type, m, r0, r1, scratch);                                                             \
  }                                                                                                \
  static void matmul_##name##_avx512(const matmul_args *m, size_t r0, size_t r1, void *scratch) {  \
    if (m->act->n_tok == 1 && m->n_out >= ROWS)                                                    \
      decode_##name(m, r0, r1, scratch);                                                           \
    else if (m->n_out >= PANEL_ROWS)                                                               \
      prefill_##name(m, r0, r1, scratch);                                                          \
    else                                                                                           \
      below.matmul[type](m, r0, r1, scratch);                                                      \
  }

DEFINE_QUANTIZED_MATMUL(q8_0, LLM_TYPE_Q8_0)
DEFINE_QUANTIZED_MATMUL(q4_0, LLM_TYPE_Q4_0)
DEFINE_QUANTIZED_MATMUL(q4_1, LLM_TYPE_Q4_1)

void kernels_set_avx512(kernels *k) {
  below = *k;
  k->scratch_bytes = scratch_bytes_avx512;
  k->matmul[LLM_TYPE_F32] = matmul_f32_avx512;
  k->matmul[LLM_TYPE_F16] = matmul_f16_avx512;
  k->matmul[LLM_TYPE_BF16] = matmul_bf16_avx512;
  k->matmul[LLM_TYPE_Q8_0] = matmul_q8_0_avx512;
  k->matmul[LLM_TYPE_Q4_0] = matmul_q4_0_avx512;
  k->matmul[LLM_TYPE_Q4_1] = matmul_q4_1_avx512;
}
#endif
