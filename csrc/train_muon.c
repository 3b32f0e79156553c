/* train_muon.c: a step of Muon (Jordan et al. 2024) for many matrices. Layer T.
 *
 * The momentum of each matrix is brought near the orthogonal matrix next to it by Newton-Schulz
 * iterations, all on one thread: small matrices leave nothing to share, and their number is large.
 * Threads take matrices, so the bits cannot depend on them. */
#include "train_ops.h"

enum { CHUNK = 4096 }; /* of the row kernels: train.h */

typedef struct muon_unit {
  const gemm_kernel *g;
  size_t n, rows, columns, side; /* n = rows * columns, side = the smaller of the two */
  float *x, *other;              /* (rows, columns) */
  float *gram, *square;          /* (side, side) */
  float *squares;                /* by chunk */
  float *packed;                 /* of the products */
} muon_unit;

static llm_gemm_args product(size_t m, size_t n, size_t k, const float *a, const float *b, float *c,
                             int a_trans, int b_trans, const float *add) {
  return (llm_gemm_args){
      .m = (int64_t)m,
      .n = (int64_t)n,
      .k = (int64_t)k,
      .a = a,
      .b = b,
      .c = c,
      .add = add,
      .lda = (int64_t)(a_trans ? m : k),
      .ldb = (int64_t)(b_trans ? k : n),
      .ldc = (int64_t)n,
      .ld_add = (int64_t)n,
      .a_trans = a_trans,
      .b_trans = b_trans,
  };
}

/* The products of an iteration: gram = x x^T, or x^T x of a tall x; square = gram gram + gram;
 * other = square x + x, or x square + x. */
static void products(const muon_unit *u, llm_gemm_args *out) {
  const int tall = u->rows > u->columns;
  const size_t side = u->side;
  out[0] = product(side, side, u->n / side, u->x, u->x, u->gram, tall, !tall, NULL);
  out[1] = product(side, side, side, u->gram, u->gram, u->square, 0, 0, u->gram);
  out[2] = product(u->rows, u->columns, side, tall ? u->x : u->square, tall ? u->square : u->x,
                   u->other, 0, 0, u->x);
}

/* Lays the scratch of a matrix out in `memory` (NULL: nowhere) and returns its floats. */
static size_t unit_place(muon_unit *u, float *memory) {
  llm_gemm_args product[3];
  size_t used = 0, most = 0;
  u->x = take(memory, &used, u->n);
  u->other = take(memory, &used, u->n);
  u->gram = take(memory, &used, u->side * u->side);
  u->square = take(memory, &used, u->side * u->side);
  u->squares = take(memory, &used, (u->n + CHUNK - 1) / CHUNK);
  products(u, product);
  for (int i = 0; i < 3; i++) {
    const size_t n = gemm_serial(u->g, &product[i], NULL, NULL);
    if (n > most) most = n;
  }
  u->packed = take(memory, &used, most);
  return used;
}

/* x = U V^T, nearly, of x = U S V^T; norm: at least the largest of S. The first iteration divides
 * by it on the way. */
static void orthogonalize(muon_unit *u, const llm_muon_args *a, float norm) {
  float inverse = 1.0f / norm;
  for (int64_t i = 0; i < a->n_iterations; i++, inverse = 1.0f) {
    const float scales[3][2] = {{inverse * inverse, 0},
                                {a->coefficient_c, a->coefficient_b},
                                {inverse, a->coefficient_a * inverse}};
    llm_gemm_args product[3];
    products(u, product);
    for (int p = 0; p < 3; p++) gemm_serial(u->g, &product[p], scales[p], u->packed);
    float *done = u->other;
    u->other = u->x;
    u->x = done;
  }
}

typedef struct muon_job {
  const llm_ops *ops;
  const llm_muon_args *args;
  size_t scratch_floats; /* per thread */
} muon_job;

static muon_unit unit_of(const muon_job *j, size_t matrix) {
  const int64_t *m = j->args->matrices + 4 * matrix;
  muon_unit u = {.g = j->ops->product, .rows = (size_t)m[1], .columns = (size_t)m[2]};
  u.n = u.rows * u.columns;
  u.side = min_size(u.rows, u.columns);
  return u;
}

static void step_matrix(void *arg, size_t matrix, int thread) {
  const muon_job *j = arg;
  const llm_muon_args *a = j->args;
  const int64_t at = a->matrices[4 * matrix], at_m = a->matrices[4 * matrix + 3];
  muon_unit u = unit_of(j, matrix);
  unit_place(&u, j->ops->scratch + (size_t)thread * j->scratch_floats);
  const int64_t n = (int64_t)u.n, n_chunks = (n + CHUNK - 1) / CHUNK;
  const llm_muon_momentum_args momentum = {a->m + at_m, u.x,         u.squares,    a->g + at,
                                           n,           a->momentum, a->grad_scale};
  muon_momentum_rows[j->ops->isa](&momentum, 0, n_chunks);
  double sum = 0;
  for (int64_t i = 0; i < n_chunks; i++) sum += (double)u.squares[i];
  orthogonalize(&u, a, (float)sqrt(sum) + 1e-7f);
  const double ratio = (double)u.rows / (double)u.columns;
  const float rate = a->rate * (ratio > 1 ? (float)sqrt(ratio) : 1.0f);
  const llm_muon_update_args update = {a->p + at, u.x, n, rate};
  muon_update_rows[j->ops->isa](&update, 0, n_chunks);
}

llm_status llm_ops_muon(llm_ops *ops, const llm_muon_args *args, llm_error *err) {
  muon_job j = {ops, args, 0};
  for (size_t i = 0; i < (size_t)args->n_matrices; i++) {
    muon_unit u = unit_of(&j, i);
    const size_t n = unit_place(&u, NULL);
    if (n > j.scratch_floats) j.scratch_floats = n;
  }
  size_t n_threads = (size_t)thread_pool_size(ops->pool);
  llm_status status = ops_scratch(ops, n_threads * j.scratch_floats, err);
  if (status) return status;
  ops_run(ops, (size_t)args->n_matrices, step_matrix, &j);
  return LLM_OK;
}
