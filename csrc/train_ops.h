/* train_ops.h: what the trainer's kernels share inside C: the handle, the choice of instruction
 * set, and the product of a packed panel. Layer T; depends on the engine's layer 0 only. */
#ifndef LLM_TRAIN_OPS_H
#define LLM_TRAIN_OPS_H

#include "port.h"
#include "threads.h"
#include "train.h"

typedef enum train_isa { ISA_SCALAR, ISA_AVX2, ISA_AVX512 } train_isa; /* order of *_builds */

/* A packed matrix has elements of 4 bytes: a float, or two neighbours in k as bfloat16; a step is
 * one of them. One tile, C (mr, nr) = A B + add over k steps: A[i][p] is a[i * row + p * step],
 * B[p][j] is b[p * nr + j], add is NULL for zero, or a matrix that may be C itself; scale is NULL,
 * or the factors of A B and of add. An element is a chain of k multiply-adds in rising p from +0,
 * then one multiply and one multiply-add (AMX's chain: train_gemm_amx.c): the same bits in whatever
 * tile it falls. Every FETCH_STEPS steps it asks the second-level cache for a line: at next,
 * next + advance, ... */
enum { FETCH_STEPS = 4, MAX_TILE = 1024 /* elements */ };
typedef void (*gemm_tile)(size_t k, const float *a, size_t row, size_t step, const float *b,
                          float *c, size_t ldc, const float *add, size_t ld_add, const float *scale,
                          const char *next, size_t advance);

/* pack_b packs one panel: dst[p * nr + j] = b[p * row + j * step] for p < k, j < n <= nr, else
 * zero. pack_a packs n rows of A into panels of mr: dst[i / mr * mr * k + p * mr + i % mr] = b[p *
 * row + i * step]; but where it rounds and row is 1, or the kernel is padded, rows are rows:
 * dst[i * k + p]. */
typedef void (*gemm_pack)(float *dst, size_t k, size_t n, const float *b, size_t row, size_t step);

typedef struct gemm_kernel {
  size_t mr, nr;
  size_t columns;  /* of C for which tiles go along the rows, before the next rows; or nr */
  size_t pair;     /* elements of k in a step: 1, or 2 as bfloat16 */
  size_t k_unit;   /* packed k is a multiple of it, by zeros */
  size_t max_kc;   /* the largest block of k, a multiple of 32 */
  size_t max_rows; /* of A in a unit of work, a multiple of 2 * mr */
  gemm_tile tile;
  gemm_pack pack_a, pack_b;
  gemm_tile narrow[2]; /* the tile's first 16 and 32 columns; NULL: only whole tiles */
  int padded;          /* A is always packed, into rows, with room for whole tiles */
  void (*begin)(void), (*end)(void); /* around a thread's tiles, or NULL */
} gemm_kernel;

struct llm_ops {
  thread_pool *pool;
  train_isa isa;
  const gemm_kernel *gemm;    /* float32, of the instruction set */
  const gemm_kernel *product; /* of llm_ops_gemm: the same, or one that rounds */
  const char *kernels;        /* their name */
  float *scratch;             /* as large as the largest operation wanted, 64-byte aligned */
  size_t scratch_floats;
};

extern const gemm_kernel gemm_kernels[]; /* by train_isa */
extern const gemm_kernel gemm_bf16;      /* where the processor has CPU_AVX512_BF16 */
extern const gemm_kernel gemm_amx;       /* where it has CPU_AMX */

static inline size_t min_size(size_t x, size_t y) { return x < y ? x : y; }
static inline size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* Hands out n floats of a scratch from *used on; without memory it only counts. */
static inline float *take(float *memory, size_t *used, size_t n) {
  float *taken = memory ? memory + *used : NULL;
  *used += round_up(n, 16);
  return taken;
}

static inline size_t gemm_steps(const gemm_kernel *g, size_t k) {
  return round_up(k, g->k_unit) / g->pair;
}

/* An A as tiles read it: element (i, p) of the tile whose first row is r, a multiple of mr, is
 * a[r * tile + i * row + p * step]. */
typedef struct gemm_rows {
  const float *a;
  size_t tile, row, step;
} gemm_rows;

/* A (m, k), or stored (k, m) when trans. Rows that need no rounding are read where they lie, all
 * else is packed into packed[round_up(m, 2 * mr) * gemm_steps(k)]. */
gemm_rows gemm_pack_rows(const gemm_kernel *g, float *packed, size_t m, size_t k, const float *a,
                         size_t lda, int trans);

/* Packs all panels of an n-wide B; panel q lies at dst + q * gemm_steps(k) * nr. */
void gemm_pack_all(const gemm_kernel *g, float *dst, size_t k, size_t n, const float *b, size_t row,
                   size_t step);

/* A block of memory that will be wanted, n_rows of n_lines cache lines; each tile asks for a piece
 * of a column of lines, so that nobody waits for it then. */
typedef struct gemm_ahead {
  const char *start;
  size_t row_bytes, n_rows, n_lines;
  size_t tile; /* tiles that have asked */
} gemm_ahead;

/* C (m, n) = A B + add for any m and one panel of B, n <= nr; ahead may be NULL. */
void gemm_panel(const gemm_kernel *g, size_t m, size_t n, size_t k, const float *a, size_t row,
                size_t step, const float *b, float *c, size_t ldc, const float *add, size_t ld_add,
                const float *scale, gemm_ahead *ahead);

/* llm_ops_gemm on the calling thread alone, by scale as above; the scratch (NULL: nothing happens)
 * holds as many floats as it returns, on a cache line. */
size_t gemm_serial(const gemm_kernel *g, const llm_gemm_args *args, const float *scale,
                   float *scratch);

/* Makes ops->scratch hold n floats (contents lost). */
llm_status ops_scratch(llm_ops *ops, size_t n, llm_error *err);

/* Runs job(arg, unit, thread) for every unit < n_units. Units go in order to whichever thread is
 * free, so that a core taken by another program does not hold up the rest; no result may depend on
 * which thread takes which. Subnormals are flushed to zero meanwhile: they cost a hundred cycles
 * each and mean nothing to a gradient. */
typedef void (*unit_job)(void *arg, size_t unit, int thread);
void ops_run(llm_ops *ops, size_t n_units, unit_job job, void *arg);

/* Items per unit, a multiple of `multiple`, at most `most`: a few units for each thread. */
size_t ops_unit(const llm_ops *ops, size_t n_items, size_t multiple, size_t most);

/* Runs builds[isa] over n_rows rows. */
void ops_run_rows(llm_ops *ops, const port_rows *builds, const void *args, int64_t n_rows);

/* By train_isa, for who calls them within a unit. */
extern const port_rows *const muon_momentum_rows, *const muon_update_rows;

#endif
