/* kernels_avx512_panels.c: quantized weights times many tokens by AVX-512 with VNNI. Layer 2.
 *
 * Panels of 16 rows hold unsigned bytes and float scales, so that types differ in the unpacking
 * alone, but for three kinds of tiles. What unsigned weights add to a dot product, a multiple of
 * the sum of the activations, is the accumulator's starting value. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx512_panels.h"

enum { TILE_TOK = 6 };

/* The quants of one block, or super-block, of 16 rows. */
AVX512_INLINE void fill_quants(const llm_type type, const uint8_t *w, size_t row_bytes,
                               __m512i less, panel_block *out) {
  const size_t four = 4 * row_bytes;
  for (size_t k = 0; k < n_pieces(type); k++) {
    const size_t at_low = low_chunk(type, k), at_high = high_chunk(type, k);
    __m512i low[4], high[4];
    UNROLL
    for (size_t i = 0; i < 4; i++)
      load_piece(type, w + i * row_bytes, k, four, 2 * four, 3 * four, &low[i], &high[i]);
    transpose(low);
    transpose(high);
    UNROLL
    for (size_t i = 0; i < 4; i++) {
      if (zero_point(type)) low[i] = _mm512_sub_epi8(low[i], less);
      if (zero_point(type)) high[i] = _mm512_sub_epi8(high[i], less);
      _mm512_store_si512(out[at_low / 2].quants[at_low % 2 * 4 + i], low[i]);
      _mm512_store_si512(out[at_high / 2].quants[at_high % 2 * 4 + i], high[i]);
    }
  }
}

AVX512_INLINE void fill_scales(const llm_type type, const uint8_t *w, size_t row_bytes,
                               panel_block *out) {
  if (is_super(type)) {
    __m512 scale[8], second[8];
    super_scales(type, w, row_bytes, scale, second);
    UNROLL
    for (size_t b = 0; b < 8; b++) {
      _mm512_store_ps(out[b].scale, scale[b]);
      _mm512_store_ps(out[b].second, second[b]);
    }
    return;
  }
  UNROLL
  for (size_t half = 0; half < 2; half++) {
    __m256 scale, minimum;
    load_scales(type, w + 8 * half * row_bytes, row_bytes, &scale, &minimum);
    _mm256_store_ps(out->scale + 8 * half, scale);
    if (type_has_minimum(type)) _mm256_store_ps(out->second + 8 * half, minimum);
  }
}

AVX512_INLINE void fill_panel(const llm_type type, const uint8_t *w, size_t n_blocks, int less,
                              panel_block *out) {
  const size_t per = is_super(type) ? QK_SUPER / QK : 1, size = block_bytes(type);
  const size_t row_bytes = n_blocks / per * size;
  const uint8_t *ahead = w;
  for (size_t b = 0; b < n_blocks; b += per, w += size, ahead += PANEL_ROWS * size) {
    for (size_t k = 0; k < PANEL_ROWS * size; k += 64) prefetch(ahead + k);
    fill_quants(type, w, row_bytes, _mm512_set1_epi8((char)less), out + b);
    fill_scales(type, w, row_bytes, out + b);
  }
}

AVX512_INLINE void multiply_tile(const llm_type type, const int n_tok, const tile_args *p) {
  const size_t halves = type == LLM_TYPE_Q6_K ? 2 : 1;
  const panel_block *w0 = p->w[0], *w1 = p->w[1];
  const act_block *a[TILE_TOK];
  __m512 y[2 * TILE_TOK], part[2 * TILE_TOK];
  UNROLL
  for (int i = 0; i < 2 * n_tok; i++) y[i] = _mm512_setzero_ps();
  UNROLL
  for (int j = 0; j < n_tok; j++) a[j] = p->a + (size_t)j * p->n_blocks;
  for (size_t b = 0; b < p->n_blocks; b++, w0++, w1++) {
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      if (half == halves) break;
      __m512i dot[2 * TILE_TOK];
      UNROLL
      for (int j = 0; j < n_tok; j++) {
        dot[j] = _mm512_setzero_si512();
        if (type == LLM_TYPE_Q6_K)
          dot[j] = _mm512_set1_epi32(-zero_point(type) * half_sum(&a[j][b], half));
        else if (!type_has_minimum(type))
          dot[j] = _mm512_set1_epi32(-p->zero_point * a[j][b].sum);
        dot[n_tok + j] = dot[j];
      }
      UNROLL
      for (size_t s = half * STEPS / 2; s < (half * STEPS + STEPS) / halves; s++) {
        const __m512i q0 = _mm512_load_si512(w0->quants[s]), q1 = _mm512_load_si512(w1->quants[s]);
        UNROLL
        for (int j = 0; j < n_tok; j++) {
          const __m512i x = _mm512_set1_epi32(load_i32(a[j][b].q + s * 4));
          dot[j] = _mm512_dpbusd_epi32(dot[j], q0, x);
          dot[n_tok + j] = _mm512_dpbusd_epi32(dot[n_tok + j], q1, x);
        }
      }
      UNROLL
      for (int i = 0; i < 2; i++) {
        const panel_block *w = i ? w1 : w0;
        const __m512 scale = _mm512_load_ps(w->scale), second = _mm512_load_ps(w->second);
        UNROLL
        for (int j = 0; j < n_tok; j++) {
          const __m512 by = _mm512_set1_ps(a[j][b].scale);
          const __m512 value = _mm512_cvtepi32_ps(dot[i * n_tok + j]);
          __m512 *sum = &y[i * n_tok + j], *first = &part[i * n_tok + j];
          if (halves == 1)
            *sum = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, by), *sum);
          else if (half == 0)
            *first = _mm512_mul_ps(value, scale);
          else
            *sum = _mm512_fmadd_ps(_mm512_fmadd_ps(value, second, *first), by, *sum);
          if (type_has_minimum(type))
            *sum = _mm512_fmadd_ps(second, _mm512_set1_ps(a[j][b].scaled_sum), *sum);
        }
      }
    }
  }
  UNROLL
  for (int i = 0; i < 2; i++) {
    UNROLL
    for (int j = 0; j < n_tok; j++)
      store_panel(p->y + (size_t)j * p->ldy, &p->rows[i], y[i * n_tok + j]);
  }
}

#define DEFINE_TILE(name, type, n_tok)                                                             \
  AVX512 static void name(const tile_args *p) {                                                    \
    multiply_tile(type, n_tok, p);                                                                 \
    LEAVE_AVX();                                                                                   \
  }
DEFINE_TILE(minima_6, LLM_TYPE_Q4_1, 6)
DEFINE_TILE(minima_2, LLM_TYPE_Q4_1, 2)
DEFINE_TILE(halves_4, LLM_TYPE_Q6_K, 4)
DEFINE_TILE(halves_2, LLM_TYPE_Q6_K, 2)
DEFINE_TILE(plain_6, LLM_TYPE_Q8_0, 6)
DEFINE_TILE(plain_2, LLM_TYPE_Q8_0, 2)

/* Of all but the filling. Q6_K's two sums a block need registers too. */
static panel_kernels kernels_of(llm_type type) {
  panel_kernels k = {.n_rows = PANEL_ROWS,
                     .block_bytes = sizeof(panel_block),
                     .most_bytes = PANELS_BYTES,
                     .n_tok = type == LLM_TYPE_Q6_K ? 4 : TILE_TOK,
                     .multiply = plain_6,
                     .multiply_two = plain_2};
  if (type_has_minimum(type)) k.multiply = minima_6, k.multiply_two = minima_2;
  if (type == LLM_TYPE_Q6_K) k.multiply = halves_4, k.multiply_two = halves_2;
  return k;
}

AVX512_SHARED size_t prefill_scratch_avx512(size_t n_in) {
  panel_kernels k = kernels_of(LLM_TYPE_Q8_0); /* as much as all */
  return panels_bytes(&k, n_in);
}

#define DEFINE_PREFILL(name, type)                                                                 \
  AVX512 AVX512_SHARED void fill_##name##_avx512(const uint8_t *w, size_t n_blocks, int less,      \
                                                 void *panel) {                                    \
    fill_panel(type, w, n_blocks, less, panel);                                                    \
  }                                                                                                \
  AVX512_SHARED void prefill_##name##_avx512(const matmul_args *m, size_t r0, size_t r1,           \
                                             void *scratch) {                                      \
    panel_kernels k = kernels_of(type);                                                            \
    k.fill = fill_##name##_avx512;                                                                 \
    panels_matmul(&k, type, m, r0, r1, scratch);                                                   \
  }
FOR_QUANTIZED_TYPES(DEFINE_PREFILL)
#endif
