/* kernels_avx2_quant.c: matrix products with quantized weights by AVX2. Layer 2.
 *
 * One token: 8 rows at a time, a register's 128-bit halves are two rows, so that a short tree of
 * adds leaves lane = row and block order costs one FMA a block. Many tokens: 8 rows are unpacked
 * once into a panel (lane = row, four consecutive elements a lane), which every token then reads.
 * Integer sums are exact: 4-bit weights stay below 8 * 2 * 15 * 127 = 30,480 in 16 bits; 8-bit ones
 * are widened to 16 bits and added up in 32. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx2.h"

static kernels below; /* the set that this one started from: takes matrices of fewer than 8 rows */

/* ---- what both shapes need ---- */

enum { ROWS = 8 };

AVX2_INLINE void store_group(float *y, const row_group *g, __m256 sums) {
  if (g->to - g->from == ROWS) {
    _mm256_storeu_ps(y + g->first, sums);
    return;
  }
  float all[ROWS];
  _mm256_storeu_ps(all, sums);
  memcpy(y + g->from, all + (g->from - g->first), (g->to - g->from) * sizeof *y);
}

/* ---- one token ---- */

/* Rows i and i + 4 of 16 bytes each. */
AVX2_INLINE __m256i load_pair(const uint8_t *p, size_t four_rows) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + four_rows), 1);
}

/* |w| * (sign of w applied to a): the one unsigned x signed product there is, exact for -128. */
AVX2_INLINE __m256i multiply_i8(__m256i w, __m256i a) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Four registers of four dwords a half to one: element i of each half is the sum of register i's
 * half. 16-bit elements stay in pairs. */
#define TREE(add, p)                                                                               \
  add(_mm256_unpacklo_epi64(                                                                       \
          add(_mm256_unpacklo_epi32(p[0], p[1]), _mm256_unpackhi_epi32(p[0], p[1])),               \
          add(_mm256_unpacklo_epi32(p[2], p[3]), _mm256_unpackhi_epi32(p[2], p[3]))),              \
      _mm256_unpackhi_epi64(                                                                       \
          add(_mm256_unpacklo_epi32(p[0], p[1]), _mm256_unpackhi_epi32(p[0], p[1])),               \
          add(_mm256_unpacklo_epi32(p[2], p[3]), _mm256_unpackhi_epi32(p[2], p[3]))))

/* Dot products of one block of 8 rows (q points at the quants of row 0) with a. */
AVX2_INLINE __m256i dot_rows(const llm_type type, const uint8_t *q, size_t row_bytes,
                             const int8_t *a) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i a_low = _mm256_broadcastsi128_si256(load16(a));
  const __m256i a_high = _mm256_broadcastsi128_si256(load16(a + 16));
  __m256i p[4];
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    __m256i w = load_pair(q + i * row_bytes, 4 * row_bytes);
    if (type == LLM_TYPE_Q8_0) {
      __m256i high = load_pair(q + i * row_bytes + 16, 4 * row_bytes);
      p[i] = _mm256_add_epi32(multiply_i8(w, a_low), multiply_i8(high, a_high));
    } else {
      __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(w, nibble), a_low);
      w = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
      p[i] = _mm256_add_epi16(low, _mm256_maddubs_epi16(w, a_high));
    }
  }
  if (type == LLM_TYPE_Q8_0) return TREE(_mm256_add_epi32, p);
  return _mm256_madd_epi16(TREE(_mm256_add_epi16, p), _mm256_set1_epi16(1));
}

/* 8 rows that lie `stride` bytes apart. */
AVX2_INLINE __m256 decode_rows(const llm_type type, const uint8_t *w, size_t stride,
                               const act_rows *act) {
  const size_t size = block_bytes(type), n_blocks = act->n_in / QK;
  __m256 y = _mm256_setzero_ps();
  for (size_t b = 0; b < n_blocks; b++, w += size) {
    __m256 scale, minimum;
    load_scales(type, w, stride, &scale, &minimum);
    __m256i dot = dot_rows(type, w + quants_at(type), stride, act->q + b * QK);
    if (type == LLM_TYPE_Q4_0) dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(8 * act->sum[b]));
    scale = _mm256_mul_ps(scale, _mm256_broadcast_ss(act->scale + b));
    y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, y);
    if (type == LLM_TYPE_Q4_1)
      y = _mm256_fmadd_ps(minimum, _mm256_broadcast_ss(act->scaled_sum + b), y);
  }
  return y;
}

AVX2_INLINE void decode(const llm_type type, const matmul_args *m, size_t r0, size_t r1) {
  const size_t row_bytes = m->act->n_in / QK * block_bytes(type), apart = (r1 - r0) / ROWS;
  const uint8_t *w = m->w;
  for (size_t r = r0; r < r0 + apart; r++) {
    float y[ROWS];
    _mm256_storeu_ps(y, decode_rows(type, w + r * row_bytes, apart * row_bytes, m->act));
    for (size_t i = 0; i < ROWS; i++) m->y[r + i * apart] = y[i];
  }
  for (size_t r = r0 + apart * ROWS; r < r1; r += ROWS) {
    row_group g = group_at(r, r1, m->n_out, ROWS);
    store_group(m->y, &g, decode_rows(type, w + g.first * row_bytes, row_bytes, m->act));
  }
}

/* ---- many tokens: panels ---- */

/* A panel holds 8 rows: per block `steps` registers of 8 lanes (one a row) with four bytes, or two
 * 16-bit elements, each; then the scales and minima, 8 floats a block. */
enum { MAX_PANELS = 8, PANELS_BYTES = 256 << 10, TILE_TOK = 3 };

AVX2_INLINE size_t panel_steps(const llm_type type) { return type == LLM_TYPE_Q8_0 ? 16 : 8; }

typedef struct panels {
  size_t n, n_blocks;
  row_group rows[MAX_PANELS];
  uint8_t *quants[MAX_PANELS];
  float *scales[MAX_PANELS], *minima[MAX_PANELS];
} panels;

static size_t panel_bytes(size_t n_in) { return n_in / QK * (16 * 32 + 2 * 32); }

/* As many as half of an L2 cache holds. */
static size_t panels_for(size_t n_in) {
  size_t n = PANELS_BYTES / (panel_bytes(n_in) + 1);
  return n < 2 ? 2 : min_size(n, MAX_PANELS);
}

static size_t scratch_bytes_avx2(size_t n_in) {
  size_t wide_acts = TILE_TOK * n_in * 2;
  return n_in % QK ? 0 : panels_for(n_in) * panel_bytes(n_in) + wide_acts;
}

AVX2_INLINE void transpose(__m256i v[8]) { /* 8 x 8 dwords */
  __m256i a[8], b[8];
  UNROLL
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
  UNROLL
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  UNROLL
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

/* 32 signed bytes to 16-bit pairs: dword j becomes elements (4j, 4j + 2) in dst[0] and (4j + 1,
 * 4j + 3) in dst[1]. Weights and activations alike, so that the order of elements does not matter.
 */
AVX2_INLINE void widen(__m256i bytes, __m256i *even, __m256i *odd) {
  _mm256_storeu_si256(even, _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
  _mm256_storeu_si256(odd, _mm256_srai_epi16(bytes, 8));
}

AVX2_INLINE void fill_panel(const llm_type type, const uint8_t *w, panels *p, size_t panel) {
  const size_t size = block_bytes(type), row_bytes = p->n_blocks * size;
  __m256i *out = (__m256i *)p->quants[panel];
  for (size_t b = 0; b < p->n_blocks; b++, w += size, out += panel_steps(type)) {
    __m256i v[ROWS];
    const uint8_t *q = w + quants_at(type);
    UNROLL
    for (size_t i = 0; i < ROWS; i++) {
      if (type == LLM_TYPE_Q8_0) {
        v[i] = _mm256_loadu_si256((const __m256i *)(q + i * row_bytes));
      } else {
        __m128i low = load16(q + i * row_bytes);
        v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_srli_epi16(low, 4), 1);
        v[i] = _mm256_and_si256(v[i], _mm256_set1_epi8(15));
      }
    }
    transpose(v);
    UNROLL
    for (size_t i = 0; i < 8; i++) {
      if (type == LLM_TYPE_Q8_0)
        widen(v[i], out + i, out + 8 + i);
      else
        _mm256_storeu_si256(out + i, v[i]);
    }
    __m256 scale, minimum;
    load_scales(type, w, row_bytes, &scale, &minimum);
    _mm256_storeu_ps(p->scales[panel] + b * ROWS, scale);
    if (type == LLM_TYPE_Q4_1) _mm256_storeu_ps(p->minima[panel] + b * ROWS, minimum);
  }
}

/* n_panel panels from `panel` on times n_tok tokens from t on; a: their quants, 4 bytes a step. */
AVX2_INLINE void panel_tile(const llm_type type, const int n_panel, const int n_tok,
                            const panels *p, size_t panel, const matmul_args *m, size_t t,
                            const int8_t *a) {
  const size_t steps = panel_steps(type), n_blocks = p->n_blocks, a_stride = n_blocks * steps * 4;
  const act_rows *act = m->act;
  __m256 y[2 * TILE_TOK];
  UNROLL
  for (int i = 0; i < n_panel * n_tok; i++) y[i] = _mm256_setzero_ps();
  for (size_t b = 0; b < n_blocks; b++) {
    __m256i dot[2 * TILE_TOK];
    UNROLL
    for (int i = 0; i < n_panel * n_tok; i++) dot[i] = _mm256_setzero_si256();
    UNROLL
    for (size_t s = 0; s < steps; s++) {
      __m256i w[2];
      UNROLL
      for (int i = 0; i < n_panel; i++) {
        w[i] = _mm256_loadu_si256((const __m256i *)p->quants[panel + (size_t)i] + b * steps + s);
        KEEP(w[i]);
      }
      UNROLL
      for (int j = 0; j < n_tok; j++) {
        __m256i x = _mm256_set1_epi32(load_i32(a + (size_t)j * a_stride + (b * steps + s) * 4));
        UNROLL
        for (int i = 0; i < n_panel; i++) {
          __m256i *sum = &dot[i * n_tok + j];
          *sum = type == LLM_TYPE_Q8_0 ? _mm256_add_epi32(*sum, _mm256_madd_epi16(w[i], x))
                                       : _mm256_add_epi16(*sum, _mm256_maddubs_epi16(w[i], x));
          KEEP(*sum);
        }
      }
    }
    UNROLL
    for (int i = 0; i < n_panel; i++) {
      __m256 scale = _mm256_loadu_ps(p->scales[panel + (size_t)i] + b * ROWS);
      UNROLL
      for (int j = 0; j < n_tok; j++) {
        size_t at = (t + (size_t)j) * n_blocks + b;
        __m256i d = dot[i * n_tok + j];
        if (type != LLM_TYPE_Q8_0) d = _mm256_madd_epi16(d, _mm256_set1_epi16(1));
        if (type == LLM_TYPE_Q4_0) d = _mm256_sub_epi32(d, _mm256_set1_epi32(8 * act->sum[at]));
        __m256 product = _mm256_mul_ps(scale, _mm256_broadcast_ss(act->scale + at));
        __m256 *sum = &y[i * n_tok + j];
        *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), product, *sum);
        if (type == LLM_TYPE_Q4_1)
          *sum = _mm256_fmadd_ps(_mm256_loadu_ps(p->minima[panel + (size_t)i] + b * ROWS),
                                 _mm256_broadcast_ss(act->scaled_sum + at), *sum);
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
  if (type == LLM_TYPE_Q8_0) {
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
  const size_t n_panels = panels_for(n_in), row_bytes = n_blocks * block_bytes(type);
  int8_t *wide = (int8_t *)scratch + n_panels * panel_bytes(n_in);
  for (size_t r = r0; r < r1; r += n_panels * ROWS) {
    panels p = {.n_blocks = n_blocks};
    for (; p.n < n_panels && r + p.n * ROWS < r1; p.n++) {
      char *memory = scratch + p.n * panel_bytes(n_in);
      p.rows[p.n] = group_at(r + p.n * ROWS, r1, m->n_out, ROWS);
      p.quants[p.n] = (uint8_t *)memory;
      p.scales[p.n] = (float *)(memory + n_blocks * 16 * 32);
      p.minima[p.n] = p.scales[p.n] + n_blocks * ROWS;
      fill_panel(type, (const uint8_t *)m->w + p.rows[p.n].first * row_bytes, &p, p.n);
    }
    size_t t = 0;
    for (; t + 3 <= n_tok; t += 3) panels_times_tokens(type, 3, &p, m, t, wide);
    if (n_tok - t == 2) panels_times_tokens(type, 2, &p, m, t, wide);
    if (n_tok - t == 1) panels_times_tokens(type, 1, &p, m, t, wide);
  }
}

#define DEFINE_QUANTIZED_MATMUL(name, type)                                                        \
  AVX2 static void decode_##name(const matmul_args *m, size_t r0, size_t r1) {                     \
    decode(type, m, r0, r1);                                                                       \
  }                                                                                                \
  AVX2 static void prefill_##name(const matmul_args *m, size_t r0, size_t r1, char *scratch) {     \
    prefill(type, m, r0, r1, scratch);                                                             \
  }                                                                                                \
  static void matmul_##name##_avx2(const matmul_args *m, size_t r0, size_t r1, void *scratch) {    \
    if (m->n_out < ROWS)                                                                           \
      below.matmul[type](m, r0, r1, NULL);                                                         \
    else if (m->act->n_tok == 1)                                                                   \
      decode_##name(m, r0, r1);                                                                    \
    else                                                                                           \
      prefill_##name(m, r0, r1, scratch);                                                          \
  }

DEFINE_QUANTIZED_MATMUL(q8_0, LLM_TYPE_Q8_0)
DEFINE_QUANTIZED_MATMUL(q4_0, LLM_TYPE_Q4_0)
DEFINE_QUANTIZED_MATMUL(q4_1, LLM_TYPE_Q4_1)

void kernels_set_avx2_quant(kernels *k) {
  below = *k;
  k->scratch_bytes = scratch_bytes_avx2;
  k->matmul[LLM_TYPE_Q8_0] = matmul_q8_0_avx2;
  k->matmul[LLM_TYPE_Q4_0] = matmul_q4_0_avx2;
  k->matmul[LLM_TYPE_Q4_1] = matmul_q4_1_avx2;
}
#endif
