/* train_gemm.c: float32 matrix products for the trainer. Layer T.
 *
 * B is packed into panels of nr columns, A is read where it lies (packed too when it is
 * transposed), and tiles of mr x nr outputs stay in registers over a block of k (Goto and van de
 * Geijn 2008). Threads take blocks of rows of C; the sum of an output runs over k in rising order,
 * in blocks that the shape alone decides, so neither threads nor tiles can change a bit. Not BLAS:
 * its threads can. */
#include "train_ops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Largest block of k and most rows of A in a unit of work, measured on Zen 3: flat from 384 and
 * from 48 on. The rows of a tile stay in the first-level cache, the rows of a unit in the second.
 */
enum { MAX_KC = 512, MAX_ROWS = 96 };

/* ---- packing: the width is a constant in each build ---- */

PORT_INLINE void pack_panel(const size_t width, float *dst, size_t k, size_t n, const float *b,
                            size_t row, size_t step) {
  if (n < width) { /* an edge */
    memset(dst, 0, k * width * sizeof *dst);
    for (size_t p = 0; p < k; p++)
      for (size_t j = 0; j < n; j++) dst[p * width + j] = b[p * row + j * step];
  } else if (step == 1) {
    for (size_t p = 0; p < k; p++) memcpy(dst + p * width, b + p * row, width * sizeof *dst);
  } else {
    for (size_t p = 0; p < k; p++)
      for (size_t j = 0; j < width; j++) dst[p * width + j] = b[p * row + j * step];
  }
}

/* Any number of panels. */
#define PACK(name, width, target)                                                                  \
  target static void name(float *dst, size_t k, size_t n, const float *b, size_t row,              \
                          size_t step) {                                                           \
    for (size_t j = 0; j < n; j += width)                                                          \
      pack_panel(width, dst + j * k, k, min_size(width, n - j), b + j * step, row, step);          \
  }

/* ---- tiles ---- */

enum { MR_SCALAR = 4, NR_SCALAR = 16, MR_AVX2 = 6, NR_AVX2 = 16, MR_AVX512 = 12, NR_AVX512 = 32 };

PACK(pack_a_scalar, MR_SCALAR, )
PACK(pack_b_scalar, NR_SCALAR, )

/* What becomes of a sum. */
static inline float finish(float sum, const float *add, const float *scale) {
  if (!scale) return add ? sum + *add : sum;
  return add ? fmaf(*add, scale[1], sum * scale[0]) : sum * scale[0];
}

/* The reference. Without a fused instruction it rounds the product, as the others do not. */
static void tile_scalar(size_t k, const float *a, size_t row, size_t step, const float *b, float *c,
                        size_t ldc, const float *add, size_t ld_add, const float *scale,
                        const char *next, size_t advance) {
  (void)next, (void)advance;
  float acc[MR_SCALAR][NR_SCALAR] = {{0}};
  for (size_t p = 0; p < k; p++)
    for (size_t i = 0; i < MR_SCALAR; i++)
      for (size_t j = 0; j < NR_SCALAR; j++)
        acc[i][j] += a[i * row + p * step] * b[p * NR_SCALAR + j];
  for (size_t i = 0; i < MR_SCALAR; i++)
    for (size_t j = 0; j < NR_SCALAR; j++)
      c[i * ldc + j] = finish(acc[i][j], add ? add + i * ld_add + j : NULL, scale);
}

#if defined(__x86_64__)

/* dst[i * ld_dst + j] = src[j * ld_src + i], 8 x 8. */
TARGET_AVX2 PORT_INLINE void transpose8(float *dst, size_t ld_dst, const float *src,
                                        size_t ld_src) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(src + (size_t)i * ld_src);
  for (int i = 0; i < 8; i += 2) { /* pairs of rows, within 128-bit halves */
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) { /* fours of rows */
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
    }
  for (size_t i = 0; i < 4; i++) { /* halves */
    _mm256_storeu_ps(dst + i * ld_dst, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(dst + (i + 4) * ld_dst, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

/* A B that is stored transposed goes by squares. */
#define PACK_B(name, width, target)                                                                \
  target static void name(float *dst, size_t k, size_t n, const float *b, size_t row,              \
                          size_t step) {                                                           \
    size_t p = 0;                                                                                  \
    for (; row == 1 && n == width && p + 8 <= k; p += 8)                                           \
      for (size_t j = 0; j < width; j += 8)                                                        \
        transpose8(dst + p * width + j, width, b + p + j * step, step);                            \
    pack_panel(width, dst + p * width, k - p, n, b + p * row, row, step);                          \
  }

PACK(pack_a_avx2, MR_AVX2, TARGET_AVX2)
PACK_B(pack_b_avx2, NR_AVX2, TARGET_AVX2)

/* A tile of rows times two registers of W bits. The accumulators are named one by one: both
 * compilers then keep them in registers. */
#define ZERO(W, i)                                                                                 \
  __m##W x##i = _mm##W##_setzero_ps(), y##i = x##i;                                                \
  _mm_prefetch((const char *)(c + (i)*ldc), _MM_HINT_T0);                                          \
  _mm_prefetch((const char *)(c + (i)*ldc + (W) / 16 - 1), _MM_HINT_T0);
#define FMA(W, i)                                                                                  \
  {                                                                                                \
    const __m##W ai = _mm##W##_set1_ps(a[(i)*row]);                                                \
    x##i = _mm##W##_fmadd_ps(ai, b0, x##i);                                                        \
    y##i = _mm##W##_fmadd_ps(ai, b1, y##i);                                                        \
  }
#define SCALE(W, i)                                                                                \
  x##i = _mm##W##_mul_ps(x##i, factor);                                                            \
  y##i = _mm##W##_mul_ps(y##i, factor);
#define ADD(W, i)                                                                                  \
  x##i = _mm##W##_fmadd_ps(_mm##W##_loadu_ps(add + (i)*ld_add), factor, x##i);                     \
  y##i = _mm##W##_fmadd_ps(_mm##W##_loadu_ps(add + (i)*ld_add + (W) / 32), factor, y##i);
#define STORE(W, i)                                                                                \
  _mm##W##_storeu_ps(c + (i)*ldc, x##i);                                                           \
  _mm##W##_storeu_ps(c + (i)*ldc + (W) / 32, y##i);
#define ROWS_0_TO_5(W, F)  F(W, 0) F(W, 1) F(W, 2) F(W, 3) F(W, 4) F(W, 5)
#define ROWS_6_TO_11(W, F) F(W, 6) F(W, 7) F(W, 8) F(W, 9) F(W, 10) F(W, 11)
#define ROWS_AVX2(F)       ROWS_0_TO_5(256, F)
#define ROWS_AVX512(F)     ROWS_0_TO_5(512, F) ROWS_6_TO_11(512, F)

#define TILE(name, TARGET, W, EACH_ROW)                                                            \
  TARGET static void name(size_t k, const float *a, size_t row, size_t step, const float *b,       \
                          float *c, size_t ldc, const float *add, size_t ld_add,                   \
                          const float *scale, const char *next, size_t advance) {                  \
    EACH_ROW(ZERO)                                                                                 \
    for (; k; k--) {                                                                               \
      if (k % FETCH_STEPS == 0) {                                                                  \
        _mm_prefetch(next, _MM_HINT_T1);                                                           \
        next += advance;                                                                           \
      }                                                                                            \
      const __m##W b0 = _mm##W##_loadu_ps(b), b1 = _mm##W##_loadu_ps(b + (W) / 32);                \
      EACH_ROW(FMA)                                                                                \
      a += step;                                                                                   \
      b += (W) / 16;                                                                               \
    }                                                                                              \
    if (scale) {                                                                                   \
      const __m##W factor = _mm##W##_set1_ps(scale[0]);                                            \
      EACH_ROW(SCALE)                                                                              \
    }                                                                                              \
    if (add) {                                                                                     \
      const __m##W factor = _mm##W##_set1_ps(scale ? scale[1] : 1.0f);                             \
      EACH_ROW(ADD)                                                                                \
    }                                                                                              \
    EACH_ROW(STORE)                                                                                \
  }

TILE(tile_avx2, TARGET_AVX2, 256, ROWS_AVX2)

PACK(pack_a_avx512, MR_AVX512, TARGET_AVX512)
PACK_B(pack_b_avx512, NR_AVX512, TARGET_AVX512)

TILE(tile_avx512, TARGET_AVX512, 512, ROWS_AVX512)

#endif

#define KERNEL(isa, name)                                                                          \
  {                                                                                                \
    .mr = MR_##isa, .nr = NR_##isa, .columns = NR_##isa, .pair = 1, .k_unit = 1, .max_kc = MAX_KC, \
    .max_rows = MAX_ROWS, .tile = tile_##name, .pack_a = pack_a_##name, .pack_b = pack_b_##name    \
  }

const gemm_kernel gemm_kernels[] = {
    KERNEL(SCALAR, scalar),
#if defined(__x86_64__)
    KERNEL(AVX2, avx2),
    KERNEL(AVX512, avx512),
#endif
};

/* ---- edges ---- */

void gemm_pack_all(const gemm_kernel *g, float *dst, size_t k, size_t n, const float *b, size_t row,
                   size_t step) {
  for (size_t j = 0; j < n; j += g->nr)
    g->pack_b(dst + j * gemm_steps(g, k), k, min_size(g->nr, n - j), b + j * step, row, step);
}

gemm_rows gemm_pack_rows(const gemm_kernel *g, float *packed, size_t m, size_t k, const float *a,
                         size_t lda, int trans) {
  const size_t steps = gemm_steps(g, k);
  if (!trans && g->pair == 1) return (gemm_rows){a, lda, lda, 1};
  g->pack_a(packed, k, m, a, trans ? lda : 1, trans ? 1 : lda);
  return trans && !g->padded ? (gemm_rows){packed, steps, 1, g->mr}
                             : (gemm_rows){packed, steps, steps, 1};
}

/* The narrowest tile that has n columns. */
static gemm_tile tile_for(const gemm_kernel *g, size_t n, size_t *width) {
  for (size_t i = 0; i < 2; i++) {
    *width = 16 * (i + 1);
    if (g->narrow[i] && n <= *width) return g->narrow[i];
  }
  *width = g->nr;
  return g->tile;
}

/* Rows [skip, rows) and columns [0, n) of a whole tile computed aside. */
static void edge_tile(const gemm_kernel *g, size_t skip, size_t rows, size_t n, size_t k,
                      const float *a, size_t row, size_t step, const float *b, float *c, size_t ldc,
                      const float *add, size_t ld_add, const float *scale) {
  _Alignas(64) float tile[MAX_TILE];
  size_t width;
  tile_for(g, n, &width)(k, a, row, step, b, tile, g->nr, NULL, 0, NULL, (const char *)b, 0);
  for (size_t i = skip; i < rows; i++)
    for (size_t j = 0; j < n; j++)
      c[i * ldc + j] = finish(tile[i * g->nr + j], add ? add + i * ld_add + j : NULL, scale);
}

/* The next tile's piece; nothing wanted: a line that is here already. */
static const char *ask(gemm_ahead *ahead, size_t k, const float *here, size_t *advance) {
  const size_t n = k / FETCH_STEPS;
  *advance = 0;
  if (!ahead || !ahead->n_lines || !n) return (const char *)here;
  const size_t pieces = (ahead->n_rows + n - 1) / n, line = ahead->tile / pieces;
  const size_t piece = ahead->tile++ % pieces;
  if (line >= ahead->n_lines) return (const char *)here;
  *advance = ahead->row_bytes;
  return ahead->start + piece * n * ahead->row_bytes + line * 64;
}

void gemm_panel(const gemm_kernel *g, size_t m, size_t n, size_t k, const float *a, size_t row,
                size_t step, const float *b, float *c, size_t ldc, const float *add, size_t ld_add,
                const float *scale, gemm_ahead *ahead) {
  const size_t mr = g->mr, whole = m / mr * mr;
  size_t width;
  const gemm_tile tile = tile_for(g, n, &width);
  for (size_t i = 0; i < whole; i += mr) {
    const float *add_i = add ? add + i * ld_add : NULL;
    size_t advance;
    const char *next = ask(ahead, k, b, &advance);
    if (n == width)
      tile(k, a + i * row, row, step, b, c + i * ldc, ldc, add_i, ld_add, scale, next, advance);
    else
      edge_tile(g, 0, mr, n, k, a + i * row, row, step, b, c + i * ldc, ldc, add_i, ld_add, scale);
  }
  if (whole == m) return;
  if (g->padded) { /* what lies behind the last row is multiplied too, and dropped */
    edge_tile(g, 0, m - whole, n, k, a + whole * row, row, step, b, c + whole * ldc, ldc,
              add ? add + whole * ld_add : NULL, ld_add, scale);
    return;
  }
  if (m >= mr) { /* the last mr rows again; those that are done are skipped */
    size_t i = m - mr;
    edge_tile(g, whole - i, mr, n, k, a + i * row, row, step, b, c + i * ldc, ldc,
              add ? add + i * ld_add : NULL, ld_add, scale);
    return;
  }
  for (size_t i = 0; i < m; i++) /* too few rows for a tile: row stride 0 repeats one */
    edge_tile(g, 0, 1, n, k, a + i * row, 0, step, b, c + i * ldc, ldc,
              add ? add + i * ld_add : NULL, ld_add, scale);
}

/* ---- the product, block of k by block of k ---- */

typedef struct gemm_job {
  const gemm_kernel *g;
  const llm_gemm_args *x;
  const float *scale;
  size_t block; /* of k, the largest: kc of all blocks but the last */
  size_t p, kc; /* this block: [p, p + kc) */
  size_t steps; /* that kc takes, packed */
  size_t rows;  /* of C in a unit */
  size_t n_threads;
  float *b_panels; /* (panels, steps, nr) */
  float *a_blocks; /* (n_threads, steps * rows), for an A that is transposed or rounded */
} gemm_job;

/* A unit is a panel of B. */
static void pack_b(void *arg, size_t unit, int thread) {
  (void)thread;
  const gemm_job *j = arg;
  const llm_gemm_args *x = j->x;
  const size_t nr = j->g->nr, col = unit * nr, ldb = (size_t)x->ldb;
  const size_t row = x->b_trans ? 1 : ldb, step = x->b_trans ? ldb : 1;
  j->g->pack_b(j->b_panels + col * j->steps, j->kc, min_size(nr, (size_t)x->n - col),
               x->b + j->p * row + col * step, row, step);
}

/* What the thread packs next: A's part of a unit that many threads further on, or of the first unit
 * of the next block of k. Rows that are read where they lie need no help, and tiles that wait for
 * memory all the time have none to give. */
static gemm_ahead ahead_of(const gemm_job *j, size_t unit) {
  const llm_gemm_args *x = j->x;
  const size_t m = (size_t)x->m, lda = (size_t)x->lda, after = (unit + j->n_threads) * j->rows;
  const int turned = after >= m;
  const size_t i = turned ? 0 : after, p = turned ? j->p + j->kc : j->p;
  if (p >= (size_t)x->k || j->g->padded || (j->g->pair == 1 && !x->a_trans)) return (gemm_ahead){0};
  const size_t rows = min_size(j->rows, m - i), kc = min_size(j->block, (size_t)x->k - p);
  const float *start = x->a_trans ? x->a + p * lda + i : x->a + i * lda + p;
  return (gemm_ahead){.start = (const char *)start,
                      .row_bytes = lda * sizeof(float),
                      .n_rows = x->a_trans ? kc : rows,
                      .n_lines = ((x->a_trans ? rows : kc) + 15) / 16};
}

/* A unit is a block of rows of C. */
static void multiply_rows(void *arg, size_t unit, int thread) {
  const gemm_job *j = arg;
  const llm_gemm_args *x = j->x;
  const gemm_kernel *g = j->g;
  const size_t steps = j->steps, n = (size_t)x->n, lda = (size_t)x->lda, ldc = (size_t)x->ldc;
  const size_t i = unit * j->rows, m = min_size(j->rows, (size_t)x->m - i);
  const float *add = j->p ? x->c : x->add; /* later blocks add to the earlier ones */
  const size_t ld_add = j->p ? ldc : (size_t)x->ld_add;
  const float later[2] = {j->scale ? j->scale[0] : 1.0f, 1.0f};
  const float *scale = j->scale && j->p ? later : j->scale;
  const gemm_rows rows =
      gemm_pack_rows(g, j->a_blocks + (size_t)thread * steps * j->rows, m, j->kc,
                     x->a_trans ? x->a + j->p * lda + i : x->a + i * lda + j->p, lda, x->a_trans);
  gemm_ahead ahead = ahead_of(j, unit);
  if (g->begin) g->begin();
  /* Panels of A, and tiles that go along C's rows, come one at a time. */
  const size_t some = rows.tile == rows.row && g->columns == g->nr ? m : g->mr;
  for (size_t first = 0; first < n; first += g->columns)
    for (size_t r = 0; r < m; r += some)
      for (size_t col = first; col < min_size(first + g->columns, n); col += g->nr)
        gemm_panel(g, min_size(some, m - r), min_size(g->nr, n - col), steps,
                   rows.a + r * rows.tile, rows.row, rows.step, j->b_panels + col * steps,
                   x->c + (i + r) * ldc + col, ldc, add ? add + (i + r) * ld_add + col : NULL,
                   ld_add, scale, &ahead);
  if (g->end) g->end();
}

/* rows: of C in a unit. */
static gemm_job job_of(const gemm_kernel *g, const llm_gemm_args *args, size_t rows,
                       size_t n_threads) {
  const size_t k = (size_t)args->k, n_blocks = (k + g->max_kc - 1) / g->max_kc;
  return (gemm_job){.g = g,
                    .x = args,
                    .rows = rows,
                    .n_threads = n_threads,
                    .block = round_up((k + n_blocks - 1) / n_blocks, 32)};
}

/* Lays the packed blocks out in `memory` (NULL: nowhere) and returns how many floats they take. */
static size_t job_place(gemm_job *j, float *memory) {
  const size_t max_steps = j->block / j->g->pair, n_pad = round_up((size_t)j->x->n, j->g->nr);
  j->b_panels = memory;
  j->a_blocks = memory ? memory + max_steps * n_pad : NULL;
  return max_steps * (n_pad + j->n_threads * j->rows);
}

/* The units of each pass over this block of k. */
static void job_begin(gemm_job *j, size_t *n_panels, size_t *n_row_blocks) {
  j->kc = min_size(j->block, (size_t)j->x->k - j->p);
  j->steps = gemm_steps(j->g, j->kc);
  *n_panels = ((size_t)j->x->n + j->g->nr - 1) / j->g->nr;
  *n_row_blocks = ((size_t)j->x->m + j->rows - 1) / j->rows;
}

size_t gemm_serial(const gemm_kernel *g, const llm_gemm_args *args, const float *scale,
                   float *scratch) {
  gemm_job j = job_of(g, args, min_size(g->max_rows, round_up((size_t)args->m, 2 * g->mr)), 1);
  j.scale = scale;
  const size_t n_floats = job_place(&j, scratch);
  for (j.p = 0; scratch && j.p < (size_t)args->k; j.p += j.block) {
    size_t n_panels, n_row_blocks;
    job_begin(&j, &n_panels, &n_row_blocks);
    for (size_t i = 0; i < n_panels; i++) pack_b(&j, i, 0);
    for (size_t i = 0; i < n_row_blocks; i++) multiply_rows(&j, i, 0);
  }
  return n_floats;
}

llm_status llm_ops_gemm(llm_ops *ops, const llm_gemm_args *args, llm_error *err) {
  const gemm_kernel *g = ops->product;
  const size_t n_threads = (size_t)thread_pool_size(ops->pool);
  gemm_job j = job_of(g, args, ops_unit(ops, (size_t)args->m, 2 * g->mr, g->max_rows), n_threads);
  llm_status status = ops_scratch(ops, job_place(&j, NULL), err);
  if (status) return status;
  job_place(&j, ops->scratch);
  for (j.p = 0; j.p < (size_t)args->k; j.p += j.block) {
    size_t n_panels, n_row_blocks;
    job_begin(&j, &n_panels, &n_row_blocks);
    ops_run(ops, n_panels, pack_b, &j);
    ops_run(ops, n_row_blocks, multiply_rows, &j);
  }
  return LLM_OK;
}
