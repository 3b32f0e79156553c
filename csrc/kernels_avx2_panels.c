/* kernels_avx2_panels.c: quantized weights times many tokens by AVX2. Layer 2.
 *
 * 8 rows are unpacked once into a panel (lane = row, four consecutive elements a lane), which every
 * token then reads. Sums of byte products stay in 16 bits where that is exact: all of a block with
 * 4-bit weights, half of one with 5-bit weights (4 * 2 * 31 * 127 = 31,496). Signed bytes are
 * widened to 16 bits, activations alike, and added up in 32. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx2_quant.h"

/* Per block up to MAX_STEPS registers of 8 lanes (one a row) with four bytes, or two 16-bit
 * elements, each; then the scales, then the minima or Q6_K's second scales, 8 floats a block. */
enum { MAX_STEPS = 16, MAX_PANELS = 8, PANELS_BYTES = 256 << 10, TILE_TOK = 3 };

typedef struct panels {
  size_t n, n_blocks;
  row_group rows[MAX_PANELS];
  uint8_t *quants[MAX_PANELS];
  float *scales[MAX_PANELS], *second[MAX_PANELS];
} panels;

static size_t panel_bytes(size_t n_in) { return n_in / QK * (MAX_STEPS * 32 + 2 * 32); }

/* As many as half of an L2 cache holds. */
static size_t panels_for(size_t n_in) {
  size_t n = PANELS_BYTES / (panel_bytes(n_in) + 1);
  return n < 2 ? 2 : min_size(n, MAX_PANELS);
}

size_t prefill_scratch_avx2(size_t n_in) {
  size_t wide_acts = TILE_TOK * n_in * 2;
  return n_in % QK ? 0 : panels_for(n_in) * panel_bytes(n_in) + wide_acts;
}

ALWAYS_INLINE size_t panel_steps(const llm_type type) { return is_wide(type) ? 16 : 8; }

/* Sums of a block that are kept apart: of its halves, where scales differ or 16 bits end. */
ALWAYS_INLINE size_t panel_sums(const llm_type type) {
  return type == LLM_TYPE_Q6_K || has_five_bits(type) ? 2 : 1;
}

/* Tokens of a tile beside two panels: a second sum needs registers too. */
ALWAYS_INLINE int tile_tokens(const llm_type type) {
  return panel_sums(type) == 2 ? TILE_TOK - 1 : TILE_TOK;
}

/* 32 signed bytes to 16-bit pairs: dword j becomes elements (4j, 4j + 2) in dst[0] and (4j + 1,
 * 4j + 3) in dst[1]. Weights and activations alike, so that the order of elements does not matter.
 */
AVX2_INLINE void widen(__m256i bytes, __m256i *even, __m256i *odd) {
  _mm256_storeu_si256(even, _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
  _mm256_storeu_si256(odd, _mm256_srai_epi16(bytes, 8));
}

/* The chunk's quants of 8 rows; out: the panel at the first block of the block or super-block. */
AVX2_INLINE void store_chunk(const llm_type type, __m256i d[4], size_t chunk, __m256i *out) {
  out += chunk / 2 * panel_steps(type) + chunk % 2 * 4;
  transpose(d);
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    if (is_wide(type))
      widen(d[i], out + i, out + 8 + i);
    else
      _mm256_storeu_si256(out + i, d[i]);
  }
}

AVX2_INLINE void fill_scales(const llm_type type, const uint8_t *w, size_t row_bytes, float *scales,
                             float *second) {
  __m256 scale[8], other[8];
  if (is_super(type))
    super_scales(type, w, row_bytes, scale, other);
  else
    load_scales(type, w, row_bytes, &scale[0], &other[0]);
  for (size_t b = 0; b < (is_super(type) ? QK_SUPER / QK : 1); b++) {
    _mm256_storeu_ps(scales + b * ROWS, scale[b]);
    _mm256_storeu_ps(second + b * ROWS, other[b]);
  }
}

AVX2_INLINE void fill_panel(const llm_type type, const uint8_t *w, panels *p, size_t panel) {
  const size_t per = is_super(type) ? QK_SUPER / QK : 1, size = block_bytes(type);
  const size_t row_bytes = p->n_blocks / per * size;
  for (size_t b = 0; b < p->n_blocks; b += per, w += size) {
    __m256i *out = (__m256i *)p->quants[panel] + b * panel_steps(type);
    UNROLL
    for (size_t k = 0; k < n_pieces(type); k++) {
      __m256i low[4], high[4];
      UNROLL
      for (size_t i = 0; i < 4; i++)
        load_piece(type, w + i * row_bytes, k, 4 * row_bytes, &low[i], &high[i]);
      store_chunk(type, low, low_chunk(type, k), out);
      store_chunk(type, high, high_chunk(type, k), out);
    }
    fill_scales(type, w, row_bytes, p->scales[panel] + b * ROWS, p->second[panel] + b * ROWS);
  }
}

/* Of the steps of a block those that belong to its sum h, of panel_sums, in turn. */
ALWAYS_INLINE size_t step_of(const llm_type type, size_t h, size_t i) {
  if (panel_sums(type) == 1) return i;
  return i / 4 * 8 + h * 4 + i % 4; /* the two registers of wide elements lie 8 steps apart */
}

/* n_panel panels from `panel` on times n_tok tokens from t on; a: their quants, 4 bytes a step. */
AVX2_INLINE void panel_tile(const llm_type type, const int n_panel, const int n_tok,
                            const panels *p, size_t panel, const matmul_args *m, size_t t,
                            const int8_t *a) {
  const size_t steps = panel_steps(type), n_blocks = p->n_blocks, a_stride = n_blocks * steps * 4;
  const size_t sums = panel_sums(type);
  const act_rows *act = m->act;
  __m256 y[2 * TILE_TOK], part[2 * TILE_TOK];
  __m256i first[2 * TILE_TOK];
  UNROLL
  for (int i = 0; i < n_panel * n_tok; i++) y[i] = _mm256_setzero_ps();
  for (size_t b = 0; b < n_blocks; b++) {
    UNROLL
    for (size_t h = 0; h < 2; h++) {
      if (h == sums) break;
      __m256i dot[2 * TILE_TOK];
      UNROLL
      for (int i = 0; i < n_panel * n_tok; i++) dot[i] = _mm256_setzero_si256();
      UNROLL
      for (size_t i = 0; i < steps / sums; i++) {
        const size_t s = step_of(type, h, i);
        __m256i w[2];
        UNROLL
        for (int k = 0; k < n_panel; k++) {
          w[k] = _mm256_loadu_si256((const __m256i *)p->quants[panel + (size_t)k] + b * steps + s);
          KEEP(w[k]);
        }
        UNROLL
        for (int j = 0; j < n_tok; j++) {
          __m256i x = _mm256_set1_epi32(load_i32(a + (size_t)j * a_stride + (b * steps + s) * 4));
          UNROLL
          for (int k = 0; k < n_panel; k++) {
            __m256i *sum = &dot[k * n_tok + j];
            *sum = is_wide(type) ? _mm256_add_epi32(*sum, _mm256_madd_epi16(w[k], x))
                                 : _mm256_add_epi16(*sum, _mm256_maddubs_epi16(w[k], x));
            KEEP(*sum);
          }
        }
      }
      UNROLL
      for (int k = 0; k < n_panel; k++) {
        const float *scales = p->scales[panel + (size_t)k], *seconds = p->second[panel + (size_t)k];
        __m256 scale = _mm256_loadu_ps(scales + b * ROWS);
        UNROLL
        for (int j = 0; j < n_tok; j++) {
          const size_t at = (t + (size_t)j) * n_blocks + b;
          const int of = k * n_tok + j;
          __m256i d = dot[of];
          if (!is_wide(type)) d = _mm256_madd_epi16(d, _mm256_set1_epi16(1));
          if (has_five_bits(type)) {
            d = h ? _mm256_add_epi32(d, first[of]) : (first[of] = d);
            if (h == 0) continue;
          }
          if (zero_point(type) && !is_wide(type))
            d = _mm256_sub_epi32(d, _mm256_set1_epi32(zero_point(type) * act->sum[at]));
          __m256 value = _mm256_cvtepi32_ps(d), by = _mm256_broadcast_ss(act->scale + at);
          if (type != LLM_TYPE_Q6_K) {
            y[of] = _mm256_fmadd_ps(value, _mm256_mul_ps(scale, by), y[of]);
          } else if (h == 0) {
            part[of] = _mm256_mul_ps(value, scale);
          } else {
            part[of] = _mm256_fmadd_ps(value, _mm256_loadu_ps(seconds + b * ROWS), part[of]);
            y[of] = _mm256_fmadd_ps(part[of], by, y[of]);
          }
          if (type_has_minimum(type))
            y[of] = _mm256_fmadd_ps(_mm256_loadu_ps(seconds + b * ROWS),
                                    _mm256_broadcast_ss(act->scaled_sum + at), y[of]);
        }
      }
    }
  }
  UNROLL
  for (int i = 0; i < n_panel; i++) {
    UNROLL
    for (int j = 0; j < n_tok; j++)
      store_group(m->y + (t + (size_t)j) * m->ldy, &p->rows[panel + (size_t)i], y[i * n_tok + j]);
  }
}

AVX2_INLINE void panels_times_tokens(const llm_type type, const int n_tok, const panels *p,
                                     const matmul_args *m, size_t t, int8_t *wide) {
  const int8_t *a = m->act->q + t * m->act->n_in;
  if (is_wide(type)) {
    for (size_t i = 0; i < (size_t)n_tok * p->n_blocks; i++) {
      __m256i *out = (__m256i *)wide + 2 * i;
      widen(_mm256_loadu_si256((const __m256i *)a + i), out, out + 1);
    }
    a = wide;
  }
  size_t i = 0;
  for (; i + 2 <= p->n; i += 2) panel_tile(type, 2, n_tok, p, i, m, t, a);
  if (i < p->n) panel_tile(type, 1, n_tok, p, i, m, t, a);
}

AVX2_INLINE void prefill(const llm_type type, const matmul_args *m, size_t r0, size_t r1,
                         char *scratch) {
  const size_t n_in = m->act->n_in, n_blocks = n_in / QK, n_tok = m->act->n_tok;
  const size_t n_panels = panels_for(n_in), row_bytes = row_bytes_of(type, n_in);
  int8_t *wide = (int8_t *)scratch + n_panels * panel_bytes(n_in);
  for (size_t r = r0; r < r1; r += n_panels * ROWS) {
    panels p = {.n_blocks = n_blocks};
    for (; p.n < n_panels && r + p.n * ROWS < r1; p.n++) {
      char *memory = scratch + p.n * panel_bytes(n_in);
      p.rows[p.n] = group_at(r + p.n * ROWS, r1, m->n_out, ROWS);
      p.quants[p.n] = (uint8_t *)memory;
      p.scales[p.n] = (float *)(memory + n_blocks * MAX_STEPS * 32);
      p.second[p.n] = p.scales[p.n] + n_blocks * ROWS;
      fill_panel(type, (const uint8_t *)m->w + p.rows[p.n].first * row_bytes, &p, p.n);
    }
    const size_t most = (size_t)tile_tokens(type);
    size_t t = 0;
    for (; t + most <= n_tok; t += most)
      panels_times_tokens(type, tile_tokens(type), &p, m, t, wide);
    if (n_tok - t == 2) panels_times_tokens(type, 2, &p, m, t, wide);
    if (n_tok - t == 1) panels_times_tokens(type, 1, &p, m, t, wide);
  }
}

#define DEFINE_PREFILL(name, type)                                                                 \
  AVX2 void prefill_##name##_avx2(const matmul_args *m, size_t r0, size_t r1, void *scratch) {     \
    prefill(type, m, r0, r1, scratch);                                                             \
  }
FOR_QUANTIZED_TYPES(DEFINE_PREFILL)
#endif
