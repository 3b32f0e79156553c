/* kernels_avx2_panels.c: quantized weights times many tokens by AVX2. Layer 2.
 *
 * In panels of 8 rows a lane is a row. Sums of byte products stay in 16 bits where that is exact:
 * all of a block with 4-bit weights, half of one with 5-bit weights (4 * 2 * 31 * 127 = 31,496).
 * Signed bytes are widened to 16 bits, activations alike, and added up in 32. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx2_quant.h"
#include "kernels_panels.h"

enum { TILE_TOK = 3 };

/* A block of 8 rows: in each step four bytes of every row, or two 16-bit elements. second: the
 * minimum, or Q6_K's other scale. */
typedef struct panel_block {
  float scale[ROWS], second[ROWS];
  uint8_t quants[][4 * ROWS];
} panel_block;

typedef int16_t wide_block[QK];

/* Signed bytes, whose products with activations are added up in 32 bits; those of the others, which
 * are unsigned, in 16 as far as they fit. */
ALWAYS_INLINE int is_wide(const llm_type type) {
  return type == LLM_TYPE_Q8_0 || type == LLM_TYPE_Q6_K;
}

ALWAYS_INLINE size_t panel_steps(const llm_type type) { return is_wide(type) ? 16 : 8; }

ALWAYS_INLINE size_t panel_block_bytes(const llm_type type) {
  return sizeof(panel_block) + panel_steps(type) * 4 * ROWS;
}

/* Block b from p on. */
ALWAYS_INLINE panel_block *block_at(const llm_type type, const void *p, size_t b) {
  return (panel_block *)((char *)p + b * panel_block_bytes(type));
}

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

/* The chunk's quants of 8 rows; out: the first block of the super-block. */
AVX2_INLINE void store_chunk(const llm_type type, __m256i d[4], size_t chunk, int less,
                             panel_block *out) {
  __m256i *q = (__m256i *)block_at(type, out, chunk / 2)->quants + chunk % 2 * 4;
  transpose(d);
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    if (type == LLM_TYPE_Q6_K) d[i] = _mm256_sub_epi8(d[i], _mm256_set1_epi8((char)less));
    if (is_wide(type))
      widen(d[i], q + i, q + 8 + i);
    else
      _mm256_storeu_si256(q + i, d[i]);
  }
}

AVX2_INLINE void fill_scales(const llm_type type, const uint8_t *w, size_t row_bytes,
                             panel_block *out) {
  __m256 scale[8], second[8];
  if (is_super(type))
    super_scales(type, w, row_bytes, scale, second);
  else
    load_scales(type, w, row_bytes, &scale[0], &second[0]);
  for (size_t b = 0; b < (is_super(type) ? QK_SUPER / QK : 1); b++) {
    _mm256_storeu_ps(block_at(type, out, b)->scale, scale[b]);
    _mm256_storeu_ps(block_at(type, out, b)->second, second[b]);
  }
}

AVX2_INLINE void fill_panel(const llm_type type, const uint8_t *w, size_t n_blocks, int less,
                            panel_block *out) {
  const size_t per = is_super(type) ? QK_SUPER / QK : 1, size = block_bytes(type);
  const size_t row_bytes = n_blocks / per * size;
  const uint8_t *ahead = w;
  for (size_t b = 0; b < n_blocks; b += per, w += size, out = block_at(type, out, per)) {
    for (size_t k = 0; k < ROWS * size; k += 64) prefetch(ahead + k);
    ahead += ROWS * size;
    for (size_t k = 0; k < n_pieces(type); k++) {
      __m256i low[4], high[4];
      UNROLL
      for (size_t i = 0; i < 4; i++)
        load_piece(type, w + i * row_bytes, k, 4 * row_bytes, &low[i], &high[i]);
      store_chunk(type, low, low_chunk(type, k), less, out);
      store_chunk(type, high, high_chunk(type, k), less, out);
    }
    fill_scales(type, w, row_bytes, out);
  }
}

/* Of the steps of a block those that belong to its sum h, of panel_sums, in turn. */
ALWAYS_INLINE size_t step_of(const llm_type type, size_t h, size_t i) {
  if (panel_sums(type) == 1) return i;
  return i / 4 * 8 + h * 4 + i % 4; /* the two registers of wide elements lie 8 steps apart */
}

AVX2_INLINE void multiply_tile(const llm_type type, const int n_tok, const tile_args *p) {
  const size_t steps = panel_steps(type), sums = panel_sums(type);
  const wide_block *wide = p->wide;
  __m256 y[2 * TILE_TOK], part[2 * TILE_TOK];
  __m256i first[2 * TILE_TOK];
  UNROLL
  for (int i = 0; i < 2 * n_tok; i++) y[i] = _mm256_setzero_ps();
  for (size_t b = 0; b < p->n_blocks; b++) {
    const panel_block *w0 = block_at(type, p->w[0], b), *w1 = block_at(type, p->w[1], b);
    UNROLL
    for (size_t h = 0; h < 2; h++) {
      if (h == sums) break;
      __m256i dot[2 * TILE_TOK];
      UNROLL
      for (int i = 0; i < 2 * n_tok; i++) dot[i] = _mm256_setzero_si256();
      UNROLL
      for (size_t i = 0; i < steps / sums; i++) {
        const size_t s = step_of(type, h, i);
        __m256i w[2] = {_mm256_loadu_si256((const __m256i *)w0->quants[s]),
                        _mm256_loadu_si256((const __m256i *)w1->quants[s])};
        KEEP(w[0]);
        KEEP(w[1]);
        UNROLL
        for (int j = 0; j < n_tok; j++) {
          const size_t at = (size_t)j * p->n_blocks + b;
          __m256i x = _mm256_set1_epi32(
              load_i32(is_wide(type) ? (const int8_t *)wide[at] + s * 4 : p->a[at].q + s * 4));
          UNROLL
          for (int k = 0; k < 2; k++) {
            __m256i *sum = &dot[k * n_tok + j];
            *sum = is_wide(type) ? _mm256_add_epi32(*sum, _mm256_madd_epi16(w[k], x))
                                 : _mm256_add_epi16(*sum, _mm256_maddubs_epi16(w[k], x));
            KEEP(*sum);
          }
        }
      }
      UNROLL
      for (int k = 0; k < 2; k++) {
        const panel_block *panel = k ? w1 : w0;
        const __m256 scale = _mm256_loadu_ps(panel->scale);
        UNROLL
        for (int j = 0; j < n_tok; j++) {
          const act_block *a = &p->a[(size_t)j * p->n_blocks + b];
          const int of = k * n_tok + j;
          __m256i d = dot[of];
          if (!is_wide(type)) d = _mm256_madd_epi16(d, _mm256_set1_epi16(1));
          if (has_five_bits(type)) {
            d = h ? _mm256_add_epi32(d, first[of]) : (first[of] = d);
            if (h == 0) continue;
          }
          if (zero_point(type) && !is_wide(type))
            d = _mm256_sub_epi32(d, _mm256_set1_epi32(zero_point(type) * a->sum));
          __m256 value = _mm256_cvtepi32_ps(d), by = _mm256_broadcast_ss(&a->scale);
          if (type != LLM_TYPE_Q6_K) {
            y[of] = _mm256_fmadd_ps(value, _mm256_mul_ps(scale, by), y[of]);
          } else if (h == 0) {
            part[of] = _mm256_mul_ps(value, scale);
          } else {
            part[of] = _mm256_fmadd_ps(value, _mm256_loadu_ps(panel->second), part[of]);
            y[of] = _mm256_fmadd_ps(part[of], by, y[of]);
          }
          if (type_has_minimum(type))
            y[of] = _mm256_fmadd_ps(_mm256_loadu_ps(panel->second),
                                    _mm256_broadcast_ss(&a->scaled_sum), y[of]);
        }
      }
    }
  }
  UNROLL
  for (int i = 0; i < 2; i++) {
    UNROLL
    for (int j = 0; j < n_tok; j++)
      store_group(p->y + (size_t)j * p->ldy, &p->rows[i], y[i * n_tok + j]);
  }
}

#define DEFINE_TILES(name, type)                                                                   \
  AVX2 static void name##_most(const tile_args *p) {                                               \
    multiply_tile(type, tile_tokens(type), p);                                                     \
    LEAVE_AVX();                                                                                   \
  }                                                                                                \
  AVX2 static void name##_two(const tile_args *p) {                                                \
    multiply_tile(type, 2, p);                                                                     \
    LEAVE_AVX();                                                                                   \
  }
DEFINE_TILES(q8_0, LLM_TYPE_Q8_0)
DEFINE_TILES(q4_0, LLM_TYPE_Q4_0)
DEFINE_TILES(q4_1, LLM_TYPE_Q4_1)
DEFINE_TILES(q5_0, LLM_TYPE_Q5_0)
DEFINE_TILES(q5_1, LLM_TYPE_Q5_1)
DEFINE_TILES(q6_k, LLM_TYPE_Q6_K)

AVX2 static void widen_tokens(const act_block *a, size_t n, void *wide) {
  for (__m256i *out = wide; n; n--, a++, out += 2)
    widen(_mm256_loadu_si256((const __m256i *)a->q), out, out + 1);
}

/* Of all but the filling. */
static panel_kernels kernels_of(llm_type type) {
  panel_kernels k = {.n_rows = ROWS,
                     .block_bytes = panel_block_bytes(type),
                     .less = type == LLM_TYPE_Q6_K ? zero_point(type) : 0,
                     .most_bytes = 256 << 10, /* half of an L2 cache */
                     .n_tok = (size_t)tile_tokens(type),
                     .widen = is_wide(type) ? widen_tokens : NULL};
  switch (type) {
  case LLM_TYPE_Q4_0: k.multiply = q4_0_most, k.multiply_two = q4_0_two; break;
  case LLM_TYPE_Q4_K:
  case LLM_TYPE_Q4_1: k.multiply = q4_1_most, k.multiply_two = q4_1_two; break;
  case LLM_TYPE_Q5_0: k.multiply = q5_0_most, k.multiply_two = q5_0_two; break;
  case LLM_TYPE_Q5_K:
  case LLM_TYPE_Q5_1: k.multiply = q5_1_most, k.multiply_two = q5_1_two; break;
  case LLM_TYPE_Q6_K: k.multiply = q6_k_most, k.multiply_two = q6_k_two; break;
  default: k.multiply = q8_0_most, k.multiply_two = q8_0_two; break;
  }
  return k;
}

size_t prefill_scratch_avx2(size_t n_in) {
  panel_kernels k = kernels_of(LLM_TYPE_Q4_0), wide = kernels_of(LLM_TYPE_Q8_0);
  size_t n = panels_bytes(&k, n_in), n_wide = panels_bytes(&wide, n_in);
  n_wide += TILE_TOK * n_in / QK * sizeof(wide_block);
  return n_in % QK ? 0 : n > n_wide ? n : n_wide;
}

#define DEFINE_PREFILL(name, type)                                                                 \
  AVX2 static void fill_##name(const uint8_t *w, size_t n_blocks, int less, void *panel) {         \
    fill_panel(type, w, n_blocks, less, panel);                                                    \
  }                                                                                                \
  void prefill_##name##_avx2(const matmul_args *m, size_t r0, size_t r1, void *scratch) {          \
    panel_kernels k = kernels_of(type);                                                            \
    k.fill = fill_##name;                                                                          \
    panels_matmul(&k, type, m, r0, r1, scratch);                                                   \
  }
FOR_QUANTIZED_TYPES(DEFINE_PREFILL)
#endif
