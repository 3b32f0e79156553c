/* kernels_avx512_panels.c: quantized weights times many tokens by AVX-512 with VNNI. Layer 2.
 *
 * Rows are unpacked, 16 at a time, into panels of unsigned bytes with float scales, one form for
 * all types, which every token then reads. What unsigned weights add to a dot product, a multiple
 * of the sum of the activations, is the accumulator's starting value. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx512.h"

/* Per block 8 registers of 16 lanes (one a row) with four bytes each, then the scales, then the
 * minima or Q6_K's second scales, 16 floats a block. */
enum { STEPS = 8, MAX_PANELS = 8, PANELS_BYTES = 512 << 10, TILE = 12 };

typedef struct panels {
  size_t n, n_blocks;
  row_group rows[MAX_PANELS];
  uint8_t *quants[MAX_PANELS];
  float *scales[MAX_PANELS], *second[MAX_PANELS];
  int32_t *starts; /* Q6_K: (tokens of a tile, n_blocks * 2) */
} panels;

static size_t panel_bytes(size_t n_in) { return n_in / QK * (STEPS * 64 + 2 * 64); }

static size_t starts_bytes(size_t n_in) { return TILE / 2 * n_in / 16 * sizeof(int32_t); }

static size_t panels_for(size_t n_in) {
  size_t n = PANELS_BYTES / (panel_bytes(n_in) + 1);
  return n < 2 ? 2 : min_size(n, MAX_PANELS);
}

AVX512_SHARED size_t prefill_scratch_avx512(size_t n_in) {
  size_t starts = starts_bytes(n_in) + 63;
  return panels_for(n_in) * panel_bytes(n_in) + starts / 64 * 64;
}

/* Tokens of a tile beside two panels: Q6_K's two sums a block need registers too. */
ALWAYS_INLINE int tile_tokens(const llm_type type) { return type == LLM_TYPE_Q6_K ? 4 : 6; }

/* The quants of one block, or super-block, of 16 rows. */
AVX512_INLINE void fill_quants(const llm_type type, const uint8_t *w, size_t row_bytes,
                               uint8_t *out) {
  const size_t four = 4 * row_bytes, chunk_bytes = STEPS / 2 * 64;
  UNROLL
  for (size_t k = 0; k < n_pieces(type); k++) {
    __m512i low[4], high[4];
    UNROLL
    for (size_t i = 0; i < 4; i++)
      load_piece(type, w + i * row_bytes, k, four, 2 * four, 3 * four, &low[i], &high[i]);
    transpose(low);
    transpose(high);
    UNROLL
    for (size_t i = 0; i < 4; i++) {
      _mm512_store_si512(out + low_chunk(type, k) * chunk_bytes + i * 64, low[i]);
      _mm512_store_si512(out + high_chunk(type, k) * chunk_bytes + i * 64, high[i]);
    }
  }
}

AVX512_INLINE void fill_scales(const llm_type type, const uint8_t *w, size_t row_bytes,
                               float *scales, float *second) {
  if (is_super(type)) {
    __m512 scale[8], other[8];
    super_scales(type, w, row_bytes, scale, other);
    UNROLL
    for (size_t b = 0; b < 8; b++) {
      _mm512_store_ps(scales + b * PANEL_ROWS, scale[b]);
      _mm512_store_ps(second + b * PANEL_ROWS, other[b]);
    }
    return;
  }
  UNROLL
  for (size_t half = 0; half < 2; half++) {
    __m256 scale, minimum;
    load_scales(type, w + 8 * half * row_bytes, row_bytes, &scale, &minimum);
    _mm256_storeu_ps(scales + 8 * half, scale);
    if (type_has_minimum(type)) _mm256_storeu_ps(second + 8 * half, minimum);
  }
}

AVX512_INLINE void fill_panel(const llm_type type, const uint8_t *w, panels *p, size_t panel) {
  const size_t per = is_super(type) ? QK_SUPER / QK : 1, size = block_bytes(type);
  const size_t row_bytes = p->n_blocks / per * size;
  const uint8_t *ahead = w;
  for (size_t b = 0; b < p->n_blocks; b += per, w += size, ahead += PANEL_ROWS * size) {
    for (size_t k = 0; k < PANEL_ROWS * size; k += 64) prefetch(ahead + k);
    fill_quants(type, w, row_bytes, p->quants[panel] + b * STEPS * 64);
    fill_scales(type, w, row_bytes, p->scales[panel] + b * PANEL_ROWS,
                p->second[panel] + b * PANEL_ROWS);
  }
}

/* What the dot products of block b, or of its half, of n_tok tokens start with. */
AVX512_INLINE __m512i start_of(const llm_type type, const panels *p, const act_rows *act, size_t t,
                               size_t j, size_t b, size_t half) {
  if (type == LLM_TYPE_Q6_K) return _mm512_set1_epi32(p->starts[(j * p->n_blocks + b) * 2 + half]);
  if (!zero_point(type)) return _mm512_setzero_si512();
  const int shift = type == LLM_TYPE_Q8_0 ? 7 : type == LLM_TYPE_Q5_0 ? 4 : 3;
  __m512i sum = _mm512_set1_epi32(act->sum[(t + j) * p->n_blocks + b]);
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, shift));
}

/* n_panel panels from `panel` on times n_tok tokens from t on. */
AVX512_INLINE void panel_tile(const llm_type type, const int n_panel, const int n_tok,
                              const panels *p, size_t panel, const matmul_args *m, size_t t) {
  const act_rows *act = m->act;
  const size_t n_blocks = p->n_blocks, halves = type == LLM_TYPE_Q6_K ? 2 : 1;
  const int8_t *a = act->q + t * act->n_in;
  __m512 y[TILE], part[TILE];
  UNROLL
  for (int i = 0; i < n_panel * n_tok; i++) y[i] = _mm512_setzero_ps();
  for (size_t b = 0; b < n_blocks; b++) {
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      if (half == halves) break;
      __m512i dot[TILE];
      UNROLL
      for (int j = 0; j < n_tok; j++) {
        __m512i start = start_of(type, p, act, t, (size_t)j, b, half);
        UNROLL
        for (int i = 0; i < n_panel; i++) dot[i * n_tok + j] = start;
      }
      UNROLL
      for (size_t s = half * STEPS / 2; s < (half * STEPS + STEPS) / halves; s++) {
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
        const float *scales = p->scales[panel + (size_t)i], *seconds = p->second[panel + (size_t)i];
        __m512 scale = _mm512_load_ps(scales + b * PANEL_ROWS), second = scale;
        if (type_has_minimum(type) || half) second = _mm512_load_ps(seconds + b * PANEL_ROWS);
        UNROLL
        for (int j = 0; j < n_tok; j++) {
          size_t at = (t + (size_t)j) * n_blocks + b;
          __m512 value = _mm512_cvtepi32_ps(dot[i * n_tok + j]),
                 by = _mm512_set1_ps(act->scale[at]);
          __m512 *sum = &y[i * n_tok + j], *first = &part[i * n_tok + j];
          if (halves == 1)
            *sum = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, by), *sum);
          else if (half == 0)
            *first = _mm512_mul_ps(value, scale);
          else
            *sum = _mm512_fmadd_ps(_mm512_fmadd_ps(value, second, *first), by, *sum);
          if (type_has_minimum(type))
            *sum = _mm512_fmadd_ps(second, _mm512_set1_ps(act->scaled_sum[at]), *sum);
        }
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
  if (type == LLM_TYPE_Q6_K)
    for (size_t j = 0; j < (size_t)n_tok; j++)
      fill_starts(m->act->q + (t + j) * m->act->n_in, m->act->n_in,
                  p->starts + j * 2 * p->n_blocks);
  size_t i = 0;
  for (; i + 2 <= p->n; i += 2) panel_tile(type, 2, n_tok, p, i, m, t);
  if (i < p->n) panel_tile(type, 1, n_tok, p, i, m, t);
}

AVX512_INLINE void prefill(const llm_type type, const matmul_args *m, size_t r0, size_t r1,
                           char *scratch) {
  const size_t n_in = m->act->n_in, n_blocks = n_in / QK, n_tok = m->act->n_tok;
  const size_t n_panels = panels_for(n_in), row_bytes = row_bytes_of(type, n_in);
  for (size_t r = r0; r < r1; r += n_panels * PANEL_ROWS) {
    panels p = {.n_blocks = n_blocks};
    p.starts = (int32_t *)(scratch + n_panels * panel_bytes(n_in));
    for (; p.n < n_panels && r + p.n * PANEL_ROWS < r1; p.n++) {
      char *memory = scratch + p.n * panel_bytes(n_in);
      p.rows[p.n] = group_at(r + p.n * PANEL_ROWS, r1, m->n_out, PANEL_ROWS);
      p.quants[p.n] = (uint8_t *)memory;
      p.scales[p.n] = (float *)(memory + n_blocks * STEPS * 64);
      p.second[p.n] = p.scales[p.n] + n_blocks * PANEL_ROWS;
      fill_panel(type, (const uint8_t *)m->w + p.rows[p.n].first * row_bytes, &p, p.n);
    }
    size_t t = 0;
    const size_t most = (size_t)tile_tokens(type);
    for (; t + most <= n_tok; t += most) panels_times_tokens(type, tile_tokens(type), &p, m, t);
    for (; t + 2 <= n_tok; t += 2) panels_times_tokens(type, 2, &p, m, t);
    if (t < n_tok) panels_times_tokens(type, 1, &p, m, t);
  }
}

#define DEFINE_PREFILL(name, type)                                                                 \
  AVX512 AVX512_SHARED void prefill_##name##_avx512(const matmul_args *m, size_t r0, size_t r1,    \
                                                    void *scratch) {                               \
    prefill(type, m, r0, r1, scratch);                                                             \
  }
FOR_QUANTIZED_TYPES(DEFINE_PREFILL)
#endif
