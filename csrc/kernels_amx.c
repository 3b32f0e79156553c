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
  TILES = 4,        /* of sums: each rests until three others have been multiplied */
  MAX_PRODUCTS = 10 /* at a time: L1 has room for their tokens, rows and sums */
};

static kernels below; /* the set that this one started from: takes few tokens or rows */

typedef int32_t tile_sums[TILE_TOK][PANEL_ROWS];

/* A panel and 16 tokens, n_blocks blocks of both. */
typedef struct chunk_args {
  const panel_block *w;
  const row_group *rows;
  const act_block *a;       /* of the first token */
  size_t n_blocks, a_bytes; /* a_bytes: from one token to the next */
  size_t halved;            /* 1: blocks are multiplied in halves */
  float *y;                 /* of the first token */
} chunk_args;

/* What tile c has summed goes to L1, and product i is begun in it. */
#define NEXT_PRODUCT(c, tokens, rows)                                                              \
  case c:                                                                                          \
    if (i >= TILES) _tile_stored(c, sums[i - TILES], 64);                                          \
    if (i >= n) break;                                                                             \
    _tile_loadd(tokens, a, p->a_bytes);                                                            \
    _tile_loadd(rows, w, 64);                                                                      \
    _tile_zero(c);                                                                                 \
    _tile_dpbssd(c, tokens, rows);                                                                 \
    break;

AMX SHARED_CODE void multiply_tiles(const chunk_args *p, tile_sums *sums) {
  const size_t h = p->halved, n = p->n_blocks << h;
  for (size_t i = 0; i < n + TILES; i++) {
    const char *a = (const char *)p->a + (i >> h) * sizeof *p->a + (i & h) * (QK / 2);
    const char *w =
        (const char *)p->w + (i >> h) * sizeof *p->w + (i & h) * sizeof p->w->quants / 2;
    switch (i % TILES) {
      NEXT_PRODUCT(0, 4, 5)
      NEXT_PRODUCT(1, 6, 7)
      NEXT_PRODUCT(2, 4, 5)
      NEXT_PRODUCT(3, 6, 7)
    }
  }
}

/* y of 16 tokens and rows += scaled sums. */
AMX_INLINE void add_sums(const llm_type type, const chunk_args *p, const tile_sums *sums,
                         float out[TILE_TOK][PANEL_ROWS]) {
  const size_t apart[4] = {0, p->a_bytes, 2 * p->a_bytes, 3 * p->a_bytes};
  const panel_block *w = p->w;
  const char *a = (const char *)p->a;
  __m512 y[TILE_TOK];
  UNROLL
  for (size_t j = 0; j < TILE_TOK; j++) y[j] = _mm512_load_ps(out[j]);
  for (size_t b = 0; b < p->n_blocks; b++, w++, a += sizeof(act_block), sums++) {
    const __m512 scale = _mm512_load_ps(w->scale), second = _mm512_load_ps(w->second);
    const char *four[4] = {a, a + 4 * apart[1], a + 8 * apart[1], a + 12 * apart[1]};
    UNROLL
    for (size_t j = 0; j < TILE_TOK; j++) {
      const act_block *of = (const act_block *)(four[j / 4] + apart[j % 4]);
      const __m512 by = _mm512_set1_ps(of->scale);
      const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(sums[0][j]));
      if (type == LLM_TYPE_Q6_K) {
        const __m512 other = _mm512_cvtepi32_ps(_mm512_load_si512(sums[1][j]));
        const __m512 both = _mm512_fmadd_ps(other, second, _mm512_mul_ps(value, scale));
        y[j] = _mm512_fmadd_ps(both, by, y[j]);
      } else {
        y[j] = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, by), y[j]);
      }
      if (type_has_minimum(type))
        y[j] = _mm512_fmadd_ps(second, _mm512_set1_ps(of->scaled_sum), y[j]);
    }
    if (type == LLM_TYPE_Q6_K) sums++;
  }
  UNROLL
  for (size_t j = 0; j < TILE_TOK; j++) _mm512_store_ps(out[j], y[j]);
}

typedef void (*adding)(const chunk_args *p, const tile_sums *sums, float out[][PANEL_ROWS]);

#define DEFINE_ADD(name, type)                                                                     \
  AMX static void add_##name(const chunk_args *p, const tile_sums *sums,                           \
                             float out[TILE_TOK][PANEL_ROWS]) {                                    \
    add_sums(type, p, sums, out);                                                                  \
  }
DEFINE_ADD(plain, LLM_TYPE_Q8_0)
DEFINE_ADD(minima, LLM_TYPE_Q4_1)
DEFINE_ADD(halves, LLM_TYPE_Q6_K)

/* All blocks, a chunk at a time: y is written once and waited for by nobody. */
AMX static void multiply_panel(adding add, const matmul_args *m, chunk_args *p, size_t most) {
  _Alignas(64) tile_sums sums[MAX_PRODUCTS];
  _Alignas(64) float y[TILE_TOK][PANEL_ROWS];
  const size_t n_blocks = m->act->n_in / QK;
  float *out = p->y + p->rows->first;
  for (size_t j = 0; j < TILE_TOK; j++) {
    _mm512_store_ps(y[j], _mm512_setzero_ps());
    __builtin_prefetch(out + j * m->ldy, 1);
  }
  for (size_t b = 0; b < n_blocks; b += p->n_blocks) {
    p->n_blocks = min_size(most, n_blocks - b);
    multiply_tiles(p, sums);
    add(p, sums, y);
    p->w += p->n_blocks;
    p->a += p->n_blocks;
  }
  for (size_t j = 0; j < TILE_TOK; j++)
    _mm512_mask_storeu_ps(out + j * m->ldy, panel_mask(p->rows), _mm512_load_ps(y[j]));
}

/* Tiles 0 to 3 are sums, 4 and 6 tokens, 5 and 7 rows. */
AMX static void tiles_begin(size_t halved) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.row_bytes[i] = i == 4 || i == 6 ? QK >> halved : 64;
    c.rows[i] = i == 5 || i == 7 ? STEPS >> halved : 16;
  }
  __asm__ volatile("" ::"r"(&c) : "memory"); /* gcc 12 believes that 8 bytes are read */
  _tile_loadconfig(&c);
}

AMX static void tiles_end(void) {
  _tile_release();
  LEAVE_AVX();
}

SHARED_CODE void matmul(const matmul_args *m, size_t r0, size_t r1, void *scratch, llm_type type,
                        panel_fill fill) {
  const size_t n_tok = m->act->n_tok, n_blocks = m->act->n_in / QK;
  if (n_tok < TILE_TOK || m->n_out < PANEL_ROWS) {
    below.matmul[type](m, r0, r1, scratch);
    return;
  }
  const panel_kernels k = {PANEL_ROWS, sizeof(panel_block), .most_bytes = PANELS_BYTES,
                           .less = zero_point(type), .fill = fill};
  const size_t halved = type == LLM_TYPE_Q6_K, room = MAX_PRODUCTS >> halved;
  const size_t n_chunks = (n_blocks + room - 1) / room, most = (n_blocks + n_chunks - 1) / n_chunks;
  const adding add = halved ? add_halves : type_has_minimum(type) ? add_minima : add_plain;
  chunk_args p = {.a_bytes = n_blocks * sizeof(act_block), .halved = halved};
  tiles_begin(halved);
  for (size_t r = r0, n; r < r1; r += n * PANEL_ROWS) {
    row_group rows[MAX_PANELS];
    n = panels_fill(&k, type, m, r, r1, rows, scratch);
    for (size_t t = 0; t < n_tok; t += TILE_TOK)
      for (size_t i = 0; i < n; i++) {
        const size_t first = min_size(t, n_tok - TILE_TOK); /* moved up to end with the tokens */
        p.w = (const panel_block *)scratch + i * n_blocks;
        p.rows = rows + i;
        p.a = m->act->q + first * n_blocks;
        p.y = m->y + first * m->ldy;
        multiply_panel(add, m, &p, most);
      }
  }
  tiles_end();
}

#define DEFINE_MATMUL(name, type)                                                                  \
  static void matmul_##name##_amx(const matmul_args *m, size_t r0, size_t r1, void *scratch) {     \
    matmul(m, r0, r1, scratch, type, fill_##name##_avx512);                                        \
  }
FOR_QUANTIZED_TYPES(DEFINE_MATMUL)

void kernels_set_amx(kernels *k) {
  below = *k;
#define SET_QUANTIZED(name, type) k->matmul[type] = matmul_##name##_amx;
  FOR_QUANTIZED_TYPES(SET_QUANTIZED)
}
#endif
