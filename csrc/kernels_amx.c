/* kernels_amx.c: quantized weights times many tokens by Intel's AMX, whose tiles multiply bytes.
 * Layer 2. Everything else is AVX-512's.
 *
 * A block of a panel of 16 rows is a tile as it stands, and so is a block of 16 tokens in place:
 * one instruction gives their 16 x 16 sums, exactly. The sums of a few blocks go to L1, then the
 * vector unit scales and adds them in the order of kernels.h. Not both at once: next to
 * instructions on tiles only one of the two ports for floats works (Emerald Rapids). */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx512_panels.h"

#define AMX                                                                                        \
  __attribute__((                                                                                  \
      target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define AMX_INLINE static inline __attribute__((always_inline)) AMX

enum {
  TILE_TOK = 16,
  TILES = 4,     /* of sums: each rests until three others have been multiplied */
  MAX_CHUNK = 12 /* blocks of tokens, panel and sums that L1 has room for */
};

static kernels below; /* the set that this one started from: takes few tokens or rows */

typedef int32_t tile_sums[TILE_TOK][PANEL_ROWS];

/* A panel and 16 tokens, n_blocks blocks of both. */
typedef struct chunk_args {
  const panel_block *w;
  const row_group *rows;
  const act_block *a;       /* of the first token */
  size_t n_blocks, a_bytes; /* a_bytes: from one token to the next */
  float *y;                 /* of the first token */
  size_t ldy, n_done;       /* n_done: tokens that have their sums already */
  int goes_on;              /* sums start from y, not from 0 */
} chunk_args;

/* y of 16 tokens += scaled sums. */
AMX_INLINE void scale_sums(const llm_type type, const panel_block *w, const act_block *a,
                           size_t a_bytes, tile_sums sums, __m512 y[TILE_TOK]) {
  const __m512 scale = _mm512_load_ps(w->scale), second = _mm512_load_ps(w->second);
  const char *four[4] = {(const char *)a, (const char *)a + 4 * a_bytes,
                         (const char *)a + 8 * a_bytes, (const char *)a + 12 * a_bytes};
  const size_t apart[4] = {0, a_bytes, 2 * a_bytes, 3 * a_bytes};
  UNROLL
  for (size_t j = 0; j < TILE_TOK; j++) {
    const act_block *of = (const act_block *)(four[j / 4] + apart[j % 4]);
    const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(sums[j]));
    y[j] = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, _mm512_set1_ps(of->scale)), y[j]);
    if (type_has_minimum(type))
      y[j] = _mm512_fmadd_ps(second, _mm512_set1_ps(of->scaled_sum), y[j]);
  }
}

/* What tile c has summed goes to L1, and block b is multiplied in it. */
#define NEXT_PRODUCT(c, tokens, rows)                                                              \
  case c:                                                                                          \
    if (b >= TILES) _tile_stored(c, sums[b - TILES], 64);                                          \
    if (b >= p->n_blocks) break;                                                                   \
    _tile_loadd(tokens, p->a + b, p->a_bytes);                                                     \
    _tile_loadd(rows, p->w[b].quants, 64);                                                         \
    _tile_zero(c);                                                                                 \
    _tile_dpbssd(c, tokens, rows);                                                                 \
    break;

AMX SHARED_CODE void multiply_tiles(const chunk_args *p, tile_sums *sums) {
  for (size_t b = 0; b < p->n_blocks + TILES; b++) {
    switch (b % TILES) {
      NEXT_PRODUCT(0, 4, 5)
      NEXT_PRODUCT(1, 6, 7)
      NEXT_PRODUCT(2, 4, 5)
      NEXT_PRODUCT(3, 6, 7)
    }
  }
}

AMX_INLINE void multiply_chunk(const llm_type type, const chunk_args *p) {
  _Alignas(64) tile_sums sums[MAX_CHUNK];
  const __mmask16 mask = panel_mask(p->rows), from_y = p->goes_on ? mask : 0;
  float *out = p->y + p->rows->first;
  __m512 y[TILE_TOK];
  multiply_tiles(p, sums);
  UNROLL
  for (size_t j = 0; j < TILE_TOK; j++) y[j] = _mm512_maskz_loadu_ps(from_y, out + j * p->ldy);
  for (size_t b = 0; b < p->n_blocks; b++)
    scale_sums(type, p->w + b, p->a + b, p->a_bytes, sums[b], y);
  UNROLL
  for (size_t j = 0; j < TILE_TOK; j++)
    if (j >= p->n_done) _mm512_mask_storeu_ps(out + j * p->ldy, mask, y[j]);
}

AMX static void multiply_plain(const chunk_args *p) { multiply_chunk(LLM_TYPE_Q8_0, p); }
AMX static void multiply_minima(const chunk_args *p) { multiply_chunk(LLM_TYPE_Q4_1, p); }

/* Tiles 0 to 3 are sums, 4 and 6 tokens, 5 and 7 rows. */
AMX static void tiles_begin(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.row_bytes[i] = i == 4 || i == 6 ? QK : 64;
    c.rows[i] = i == 5 || i == 7 ? STEPS : 16;
  }
  __asm__ volatile("" ::"r"(&c) : "memory"); /* gcc 12 believes that 8 bytes are read */
  _tile_loadconfig(&c);
}

AMX static void tiles_end(void) { _tile_release(); }

typedef void (*chunk_kernel)(const chunk_args *p);

/* All tokens times blocks b to b_end of n panels. The last tile is moved up to end with the tokens,
 * as rows are; sums that grow from chunk to chunk must not be met twice. */
static void multiply_panels(chunk_kernel multiply, const matmul_args *m, const panel_block *panels,
                            const row_group *rows, size_t n, size_t b, size_t b_end) {
  const size_t n_tok = m->act->n_tok, n_blocks = m->act->n_in / QK;
  for (size_t t = 0; t < n_tok; t += TILE_TOK) {
    const size_t first = min_size(t, n_tok - TILE_TOK);
    for (size_t i = 0; i < n; i++) {
      const chunk_args p = {.w = panels + i * n_blocks + b,
                            .rows = &rows[i],
                            .a = m->act->q + first * n_blocks + b,
                            .n_blocks = b_end - b,
                            .a_bytes = n_blocks * sizeof(act_block),
                            .y = m->y + first * m->ldy,
                            .ldy = m->ldy,
                            .n_done = t - first,
                            .goes_on = b > 0};
      multiply(&p);
    }
  }
}

typedef void (*panel_fill)(const uint8_t *rows, size_t n_blocks, void *panel);

SHARED_CODE void matmul(llm_type type, panel_fill fill, const matmul_args *m, size_t r0, size_t r1,
                        void *scratch) {
  const size_t n_blocks = m->act->n_in / QK, n_chunks = (n_blocks + MAX_CHUNK - 1) / MAX_CHUNK;
  const panel_kernels k = {.n_rows = PANEL_ROWS,
                           .block_bytes = sizeof(panel_block),
                           .most_bytes = PANELS_BYTES,
                           .fill = fill};
  if (m->act->n_tok < TILE_TOK || m->n_out < PANEL_ROWS) {
    below.matmul[type](m, r0, r1, scratch);
    return;
  }
  tiles_begin();
  for (size_t r = r0, n; r < r1; r += n * PANEL_ROWS) {
    row_group rows[MAX_PANELS];
    n = panels_fill(&k, type, m, r, r1, rows, scratch);
    for (size_t c = 0; c < n_chunks; c++)
      multiply_panels(type_has_minimum(type) ? multiply_minima : multiply_plain, m,
                      (const panel_block *)scratch, rows, n, c * n_blocks / n_chunks,
                      (c + 1) * n_blocks / n_chunks);
  }
  tiles_end();
}

#define DEFINE_MATMUL(name, type)                                                                  \
  static void fill_##name(const uint8_t *w, size_t n_blocks, void *panel) {                        \
    fill_##name##_avx512(w, n_blocks, zero_point(type), panel);                                    \
  }                                                                                                \
  static void matmul_##name##_amx(const matmul_args *m, size_t r0, size_t r1, void *scratch) {     \
    matmul(type, fill_##name, m, r0, r1, scratch);                                                 \
  }
FOR_QUANTIZED_TYPES(DEFINE_MATMUL)

void kernels_set_amx(kernels *k) {
  below = *k;
#define SET_QUANTIZED(name, type)                                                                  \
  if (type != LLM_TYPE_Q6_K) k->matmul[type] = matmul_##name##_amx;
  FOR_QUANTIZED_TYPES(SET_QUANTIZED)
}
#endif
