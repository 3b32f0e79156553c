/* train_ops.c: the trainer's handle: see train.h and train_ops.h. Layer T. */
#include "train_ops.h"

#include <stdlib.h>

#include "cpu.h"
#include "error.h"

#if defined(__x86_64__)
#include <immintrin.h>
enum { FLUSH_SUBNORMALS = 0x8040 }; /* flush to zero, subnormals are zero */
static unsigned float_mode(void) { return _mm_getcsr(); }
static void set_float_mode(unsigned mode) { _mm_setcsr(mode); }
#else
enum { FLUSH_SUBNORMALS = 0 };
static unsigned float_mode(void) { return 0; }
static void set_float_mode(unsigned mode) { (void)mode; }
#endif

static const char *const ISA_NAMES[] = {"scalar", "avx2", "avx512"};

static train_isa best_isa(void) {
  unsigned features = cpu_features();
  return features & CPU_AVX512 ? ISA_AVX512 : features & CPU_AVX2 ? ISA_AVX2 : ISA_SCALAR;
}

static llm_status find_isa(train_isa *out, const char *name, llm_error *err) {
  train_isa best = best_isa();
  *out = best;
  if (!name) return error_clear(err);
  for (int isa = ISA_SCALAR; isa <= (int)best; isa++) {
    *out = (train_isa)isa;
    if (!strcmp(name, ISA_NAMES[isa])) return error_clear(err);
  }
  return error_set(err, LLM_ERR_ARG, "kernels \"%s\": unknown, or not on this machine (best: %s)",
                   name, ISA_NAMES[best]);
}

llm_status llm_ops_new(llm_ops **out, int32_t n_threads, const char *kernels, llm_error *err) {
  *out = NULL;
  train_isa isa;
  llm_status status = find_isa(&isa, kernels, err);
  if (status) return status;
  llm_ops *ops = calloc(1, sizeof *ops);
  if (!ops) return error_nomem(err, sizeof *ops, "the trainer's operations");
  ops->isa = isa;
  ops->gemm = &gemm_kernels[isa];
  status = thread_pool_new(&ops->pool, n_threads, err);
  if (status) {
    llm_ops_free(ops);
    return status;
  }
  *out = ops;
  return LLM_OK;
}

void llm_ops_free(llm_ops *ops) {
  if (!ops) return;
  thread_pool_free(ops->pool);
  free(ops->scratch);
  free(ops);
}

const char *llm_ops_kernels(const llm_ops *ops) { return ISA_NAMES[ops->isa]; }

int32_t llm_ops_threads_available(void) { return threads_available(); }

llm_status ops_scratch(llm_ops *ops, size_t n, llm_error *err) {
  if (n <= ops->scratch_floats) return error_clear(err);
  free(ops->scratch);
  ops->scratch_floats = 0;
  size_t n_bytes = round_up(n * sizeof(float), 64);
  ops->scratch = aligned_alloc(64, n_bytes);
  if (!ops->scratch) return error_nomem(err, n_bytes, "an operation's scratch");
  ops->scratch_floats = n;
  return error_clear(err);
}

typedef struct flushed_job {
  thread_job job;
  void *arg;
} flushed_job;

static void run_flushed(void *arg, int thread, int n_threads) {
  const flushed_job *f = arg;
  unsigned mode = float_mode();
  set_float_mode(mode | FLUSH_SUBNORMALS);
  f->job(f->arg, thread, n_threads);
  set_float_mode(mode); /* thread 0 is the caller's */
}

void ops_run(llm_ops *ops, thread_job job, void *arg) {
  flushed_job f = {job, arg};
  thread_pool_run(ops->pool, run_flushed, &f);
}

typedef struct rows_job {
  port_rows run;
  const void *args;
  size_t n_rows;
} rows_job;

static void run_rows(void *arg, int thread, int n_threads) {
  const rows_job *j = arg;
  size_t begin, end;
  thread_share(j->n_rows, 1, thread, n_threads, &begin, &end);
  j->run(j->args, (int64_t)begin, (int64_t)end);
}

void ops_run_rows(llm_ops *ops, const port_rows *builds, const void *args, int64_t n_rows) {
  rows_job j = {builds[ops->isa], args, (size_t)n_rows};
  ops_run(ops, run_rows, &j);
}
